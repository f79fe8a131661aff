"""Stage 1: the decoder is frozen; vision tower, connector, time embedding and flow head learn to
caption and to draw. What is frozen in other designs is said in `common.RELEASED`.
"""

from tuna_jax.configs import common, mixtures


def get_config(size: str = 'tiny'):
  """size: a name of `sizes.SIZES`, or fast (tiny, in fewer steps), also as fast-DESIGN."""
  config = common.base('stage1', size)
  return common.to_config_dict(
    common.replace(
      config,
      data=common.replace(config.data, phases=mixtures.STAGE1),
      optimizer=common.replace(config.optimizer, lr=1e-4),
    ),
    size,
  )
