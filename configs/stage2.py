"""Stage 2: everything trains; instruction, editing and video data join part-way."""

from tuna_jax.configs import common, mixtures


def get_config(size: str = 'tiny'):
  """size: a name of `sizes.SIZES`, or fast (tiny, in fewer steps), also as fast-DESIGN."""
  config = common.base('stage2', size)
  return common.to_config_dict(
    common.replace(
      config,
      data=common.replace(config.data, phases=mixtures.STAGE2),
      optimizer=common.replace(config.optimizer, lr=1e-4, warmup=2000),
    ),
    size,
  )
