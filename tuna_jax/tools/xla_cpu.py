"""XLA:CPU options that trade run time for compile time, for programs that run once or a few times.

Imports no jax: tests set flags before jax is imported.
"""

import importlib.metadata

# Most of the time of such programs is compilation; without the expensive passes it takes a seventh.
CPU_OPTIONS = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  CPU_OPTIONS['xla_cpu_use_fusion_emitters'] = False  # later versions abort on this option
