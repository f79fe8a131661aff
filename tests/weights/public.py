"""The public PyTorch modules at the sizes of a config of ours, with random weights. They need the
parity extra.
"""


def qwen2(config):
  """Qwen2ForCausalLM of transformers."""
  import transformers

  d = config.decoder
  return _random(
    transformers.Qwen2ForCausalLM(
      transformers.Qwen2Config(
        hidden_size=d.dim,
        intermediate_size=d.mlp_dim,
        num_hidden_layers=d.num_layers,
        num_attention_heads=d.num_heads,
        num_key_value_heads=d.num_kv_heads,
        rms_norm_eps=d.norm_eps,
        vocab_size=d.vocab_size,
        tie_word_embeddings=d.tied,
        rope_parameters={'rope_type': 'default', 'rope_theta': d.rope_theta},
        use_sliding_window=False,
      )
    )
  )


def siglip(config, **shape):
  """SiglipVisionModel of transformers with one layer more than we read; shape: image_size,
  patch_size, num_channels.
  """
  import transformers

  v = config.vision
  shape = {
    'image_size': v.grid,
    'patch_size': 1,
    'num_channels': config.vae.latent_channels,
    **shape,
  }
  return _random(
    transformers.SiglipVisionModel(
      transformers.SiglipVisionConfig(
        hidden_size=v.dim,
        intermediate_size=v.mlp_dim,
        num_hidden_layers=v.num_layers + 1,
        num_attention_heads=v.num_heads,
        layer_norm_eps=v.norm_eps,
        hidden_act='gelu_pytorch_tanh',
        attention_dropout=0.0,
        **shape,
      )
    )
  )


def dinov3(config, **shape):
  """DINOv3ViTModel of transformers; shape: patch_size, num_channels."""
  import transformers

  v = config.vision
  shape = {'patch_size': 1, 'num_channels': config.vae.latent_channels, **shape}
  return _random(
    transformers.DINOv3ViTModel(
      transformers.DINOv3ViTConfig(
        hidden_size=v.dim,
        intermediate_size=v.mlp_dim,
        num_hidden_layers=v.num_layers,
        num_attention_heads=v.num_heads,
        layer_norm_eps=v.norm_eps,
        hidden_act='silu',
        use_gated_mlp=True,
        num_register_tokens=4,
        **shape,
      )
    ).eval()  # while it trains, it rescales the positions at random
  )


def wan(config):
  """AutoencoderKLWan of diffusers in the form of a VaeConfig, Wan 2.1 or 2.2."""
  import diffusers

  pixels = {'patch_size': 2} if config.residual else {}
  return _random(
    diffusers.AutoencoderKLWan(
      base_dim=config.encoder_dim,
      decoder_base_dim=config.decoder_dim,
      z_dim=config.latent_channels,
      dim_mult=list(config.dim_mult),
      num_res_blocks=config.encoder_blocks,
      attn_scales=[],
      temperal_downsample=list(config.temporal_down),
      is_residual=config.residual,
      in_channels=12 if config.residual else 3,
      out_channels=12 if config.residual else 3,
      **pixels,
      scale_factor_temporal=config.temporal_stride,
      scale_factor_spatial=config.spatial_stride,
    )
  )


def _random(model):
  """Normal weights of spread 0.1, gains around one."""
  import torch

  torch.manual_seed(0)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      gain = parameter.ndim == 1 and 'bias' not in name or 'gamma' in name
      parameter.copy_(torch.randn_like(parameter) * 0.1 + float(gain))
  return model.eval()
