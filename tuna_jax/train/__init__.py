"""Training: config, state, optimizer, step, checkpoint, loop; and itself a function.

`tuna_jax.train(config, workdir)` is `tuna_jax.train.loop.train`. Importing any module of this
package makes `tuna_jax.train` the package, so a function of that name could not stay there; the
package is therefore callable.
"""

import sys
import types


class _Train(types.ModuleType):
  def __call__(self, config, workdir: str = '', devices=None):
    """Trains one stage to its last step and returns its TrainState; the same call continues.

    config: a `train.config.TrainConfig`. workdir: the run's directory. devices: all by default.
    Raises UserError for what does not fit the config, loop.Stopped once a run that was asked to
    stop has saved, and FloatingPointError for a loss that is no longer finite. The whole is said in
    `tuna_jax.train.loop.train`.
    """
    from tuna_jax.config import UserError
    from tuna_jax.mappings import kind
    from tuna_jax.train import loop  # imports jax
    from tuna_jax.train.config import TrainConfig

    if not isinstance(config, TrainConfig):
      raise UserError(f'train: expected a TrainConfig, found {kind(config)}')
    if not workdir:
      raise UserError('train: no workdir given; expected the directory of the run')
    return loop.train(config, workdir, devices)


sys.modules[__name__].__class__ = _Train
