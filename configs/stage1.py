"""Stage 1: the decoder is frozen; vision tower, connector, time embedding and flow head learn to
caption and to draw.
"""

from tuna_jax.configs import common, mixtures


def get_config(size: str = 'tiny'):
  """size: tiny, fast (tiny, in fewer steps), 2b or 7b."""
  config = common.base('stage1', size)
  return common.to_config_dict(
    common.replace(
      config,
      data=common.replace(config.data, phases=mixtures.STAGE1),
      optimizer=common.replace(
        config.optimizer, lr=1e-4, groups=(('decoder/.*', 0.0), ('.*', 1.0))
      ),
    ),
    size,
  )
