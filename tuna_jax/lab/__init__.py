"""The paper's comparison, rerun: rows that are trained alike, scored, and judged."""
