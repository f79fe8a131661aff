"""A CPU compiler that hurries, for what runs once or a few times. Imports no jax: tests set flags
before jax is there.
"""

import importlib.metadata

# Most of the time of such programs is compilation; without the expensive half of the compiler it is
# a seventh.
CPU_OPTIONS = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
if importlib.metadata.version('jaxlib').startswith(
  '0.10.'
):  # later ones know no such option, and abort
  CPU_OPTIONS['xla_cpu_use_fusion_emitters'] = False
