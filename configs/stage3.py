"""Stage 3: supervised fine-tuning on instruction, editing and high-quality generation data at a low
rate.
"""

from tuna_jax.configs import common, mixtures


def get_config(size: str = 'tiny'):
  """size: a name of `sizes.SIZES`, or fast (tiny, in fewer steps), also as fast-DESIGN."""
  config = common.base('stage3', size)
  return common.to_config_dict(
    common.replace(
      config,
      steps=20_000,
      data=common.replace(config.data, phases=mixtures.STAGE3),
      optimizer=common.replace(config.optimizer, lr=2e-5, warmup=500),
    ),
    size,
  )
