"""The tiny size in every design: learns the rendered world on a CPU."""

from dataclasses import replace

from tuna_jax.config import (
  DecoderConfig,
  FlowHeadConfig,
  PathConfig,
  TunaConfig,
  VaeConfig,
  VisionConfig,
)

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

# The designs beside it keep its token of 16 x 16 pixels: four cells of a VAE of 8 x 8, or a patch.
_PIXELS = PathConfig('clean', noise=2.0, mean=-0.8, std=0.8)
DESIGNS = {
  'late_fusion': replace(
    TINY,
    design='late_fusion',
    patch=2,
    flow_head=FlowHeadConfig(
      num_layers=4, num_kv_heads=2, rotary='index', **{**_TOWER, 'dim': 160, 'mlp_dim': 256}
    ),
    vae=replace(TINY.vae, latent_channels=4, encoder_dim=8, decoder_dim=8, residual=False),
  ),
  'pixel_encoder': replace(TINY, design='pixel_encoder', vae=None, patch=16, path=_PIXELS),
  'decoupled': replace(TINY, design='decoupled'),
  'pixel': replace(TINY, design='pixel', vae=None, vision=None, patch=16, path=_PIXELS),
}
