"""tuna_jax: the unified multimodal model Tuna (arXiv 2512.02014) in JAX, for TPU pods and GPUs."""
