"""`python -m tuna_jax` is the command `tuna-jax`."""

from tuna_jax.cli.main import main

if __name__ == '__main__':
  main()
