"""How compilers work on a CPU: XLA:CPU options that trade run time for compile time, for programs
that run once or a few times, and the environment of the compiler for TPUs.

Imports no jax: tests set flags before jax is imported.
"""

import importlib.metadata
from collections.abc import Callable

# Most of the time of such programs is compilation; without the expensive passes it takes a seventh.
CPU_OPTIONS = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  CPU_OPTIONS['xla_cpu_use_fusion_emitters'] = False  # later versions abort on this option

# The environment of a process that compiles for TPUs: no accelerator of this machine takes part.
# The last two keep libtpu from complaining that it is on no TPU host; the topology asked for does
# not depend on them.
ALONE = {
  'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
}  # fmt: skip


def quick_jit(function: Callable) -> Callable:
  """jax.jit for what runs once: on a CPU, without the expensive half of the compiler."""
  import jax

  return jax.jit(function, compiler_options=CPU_OPTIONS if jax.default_backend() == 'cpu' else None)
