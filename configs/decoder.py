"""Text-only pretraining of the tiny decoder, which stage 1 freezes. Published sizes start from
Qwen2.5 instead."""

from tuna_jax.configs import common, mixtures


def get_config(size: str = 'tiny'):
  """size: tiny or fast, also as tiny-DESIGN (published sizes start from public parts)."""
  config = common.base('decoder', size)
  return common.to_config_dict(
    common.replace(
      config,
      flow_coeff=0.0,
      ntp_coeff=1.0,
      data=common.replace(config.data, phases=mixtures.DECODER),
      optimizer=common.replace(config.optimizer, groups=(('decoder/.*', 1.0), ('.*', 0.0))),
    ),
    size,
  )
