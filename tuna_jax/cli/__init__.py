"""The command line: one thin module per verb; `tuna-jax VERB` is `python -m tuna_jax.cli.VERB`."""

from tuna_jax.cli.app import EXIT_RETRY, EXIT_USAGE, run

__all__ = ['EXIT_RETRY', 'EXIT_USAGE', 'run']
