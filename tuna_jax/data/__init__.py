"""Records, plans, packing and batches. numpy only until the last function of pipeline.py."""
