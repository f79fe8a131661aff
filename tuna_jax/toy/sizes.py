"""The tiny size: learns the rendered world on a CPU."""

from tuna_jax.config import DecoderConfig, FlowHeadConfig, TunaConfig, VaeConfig, VisionConfig

_TOWER = dict(dim=128, num_heads=4, head_dim=32, mlp_dim=256)

TINY = TunaConfig(
  vision=VisionConfig(num_layers=2, num_kv_heads=4, grid=4, **_TOWER),
  decoder=DecoderConfig(num_layers=4, num_kv_heads=2, vocab_size=384, rope_theta=1e4, **_TOWER),
  flow_head=FlowHeadConfig(num_layers=4, num_kv_heads=2, **_TOWER),
  vae=VaeConfig(
    latent_channels=16,
    encoder_dim=16,
    decoder_dim=16,
    encoder_blocks=1,
    decoder_blocks=1,
    latent_mean=(),
    latent_std=(),
  ),
  dtype='float32',
)
