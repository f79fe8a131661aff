"""Flags that several verbs define, each group by one function that gives back their values."""

import dataclasses
import os
import sys
from collections.abc import Sequence

from absl import flags

from tuna_jax.cli.app import EXIT_RETRY
from tuna_jax.config import UserError
from tuna_jax.mappings import from_dict
from tuna_jax.serve.limits import WORDS, RequestLimits

flags.disclaim_key_flags()  # they belong to the verb that calls a function of this module

# (flag, how it is defined, default, lower bound, help) of `define_distributed`.
_DISTRIBUTED = (
  ('coordinator', flags.DEFINE_string, None, None,
   'The host:port of process 0. Cloud TPU, GKE and Slurm know their processes and need none.'),
  ('num_processes', flags.DEFINE_integer, None, 1,
   'How many processes the run has; it goes with --coordinator.'),
  ('process_id', flags.DEFINE_integer, None, 0,
   'The number of this process, from 0; it goes with --coordinator.'),
  ('init_timeout_s', flags.DEFINE_float, '1800', 0,
   'How many seconds to wait for the other processes.'),
  ('expect_processes', flags.DEFINE_integer, None, 1,
   'The run refuses to start with another number of processes, and names the missing ones.'),
)  # fmt: skip
DISTRIBUTED = tuple(name for name, *_ in _DISTRIBUTED)


def define_distributed():
  """Defines the flags by which a verb joins the other processes of its run, and returns the
  function that joins it, which `main` calls first.

  Each flag may also come from the environment (TUNA_COORDINATOR, ...), which is how the launch
  scripts give every host one command line. The flag wins.
  """
  for name, define, default, low, text in _DISTRIBUTED:
    variable = f'TUNA_{name.upper()}'
    text = f'{text} It may also come from the environment variable {variable}.'
    bound = {} if low is None else {'lower_bound': low}
    define(name, os.environ.get(variable, default), text, **bound)
  return _join


def define_allow_change():
  """Defines the flag of what may differ when a run is continued, and returns what gives it."""
  found = flags.DEFINE_list(
    'allow-change', None,
    'What may differ from what the run began with, such as mixture,tokenizer,vae,tasks,media,rows '
    'or seed; otherwise a run is not continued with another one.',
  )  # fmt: skip
  return lambda: found.value or ()


def define_generator(batch_size: int):
  """Defines the flags by which a verb opens a generator, and returns the function that gives their
  values, as options of `open_generator`."""
  found = (
    flags.DEFINE_string(
      'vae', '', 'The directory of the VAE, if the checkpoint does not say where it is.'
    ),
    flags.DEFINE_string(
      'tokenizer', '', 'The directory of the tokenizer, if the checkpoint does not say where it is.'
    ),
    flags.DEFINE_integer('step', None, 'The step of the run to use; the latest by default.'),
    flags.DEFINE_bool('ema', True, 'Whether to use the averaged weights of a run.'),
    flags.DEFINE_enum(
      'dtype',
      'float32',
      ['float32', 'bfloat16', 'int8'],
      'How the parameters are held; int8 takes a quarter of the memory of float32.',
    ),
    flags.DEFINE_string('lora', '', 'A folder with an adapter of PEFT, which is merged.'),
    flags.DEFINE_integer(
      'batch_size', batch_size, 'How many results are made at once.', lower_bound=1
    ),
  )
  return lambda: {flag.name: flag.value for flag in found}


def define_model(batch_size: int):
  """Defines the flags of a checkpoint or a published model beside those of `define_generator`, and
  returns the function that opens it, which gives (its name, the generator)."""
  checkpoint = flags.DEFINE_string(
    'checkpoint', None, 'The directory of a run or of weights that the model is read from.'
  )
  model = flags.DEFINE_string(
    'model', None,
    'A published model, such as showo2-1.5b, instead of --checkpoint; `tuna-jax get` lists them. '
    'It is downloaded and converted if it is not there, once what it needs has been printed.',
  )  # fmt: skip
  more = define_generator(batch_size)

  def open_model():
    if bool(checkpoint.value) == bool(model.value):
      raise UserError(
        'give --checkpoint, the directory of a run or of weights, or --model, a published model'
      )
    from tuna_jax.sample.open import open_generator  # imports jax

    if name := model.value:
      import huggingface_hub

      from tuna_jax.weights import published

      published.check(name, tuple(published.MODELS))
      published.obtain(huggingface_hub.HfApi(), published.MODELS[name], published.folder(name))
    path = checkpoint.value or model.value
    return path, open_generator(path, **more())

  return open_model


def define_server(port: int, without: Sequence[str] = ()):
  """Defines the flags of a server's address and of what one request may ask for, limits in
  `without` excepted, and returns the function that gives (host, port, RequestLimits)."""
  host = flags.DEFINE_string(
    'host', '127.0.0.1',
    'The address to listen at. By default only this machine is served; 0.0.0.0 serves everybody '
    'who reaches it, without a password.',
  )  # fmt: skip
  number = flags.DEFINE_integer(
    'port', port, 'The port to listen at; 0 takes a free one.', 0, 65535
  )
  found = {}
  for field in dataclasses.fields(RequestLimits):
    if field.name in without:
      continue
    define = flags.DEFINE_float if isinstance(field.default, float) else flags.DEFINE_integer
    text = f'The largest number of {WORDS[field.name]}.'
    found[field.name] = define(f'max_{field.name}', field.default, text)

  def values():
    limits = {name: flag.value for name, flag in found.items()}
    return host.value, number.value, from_dict(RequestLimits, limits)

  return values


def define_drawing():
  """Defines the flags of what is drawn and of guidance by text, and returns {name: its flag}."""
  found = (
    flags.DEFINE_string(
      'size', None,
      "The size of the result: 'HxW' or 'N', multiples of 16, or a class such as '512'. By default "
      'it is that of training. Edits have by default that of the last source, rounded to 16, if it '
      "is near that of training; in bench-samples that of training, and 'own' is the source's.",
    ),
    flags.DEFINE_integer('frames', None, 'The number of frames of a clip, 4k + 1.'),
    flags.DEFINE_integer('fps', 16, 'How many frames of a clip are shown per second.', 1),
    flags.DEFINE_string('negative', '', 'The text that guidance moves away from.'),
    flags.DEFINE_float(
      'guidance', None,
      'The scale of guidance by the text; 1 is none. By default it is what the run says '
      '(config.sampling), or as published for the design: 7.5, and 6 for clips, of a Tuna.',
    ),
  )  # fmt: skip
  return {flag.name: flag for flag in found}


def define_sampler():
  """Defines the flags of the sampler, and returns the function that gives their values; None is as
  the run of the model says, or as published for its design."""
  usual = 'By default it is what the run says, or as published for the design of the model.'
  found = (
    flags.DEFINE_integer(
      'points', None,
      'The points of the time grid; the sampler takes one step fewer. By default what the run '
      'says, or 50, and 51 in pixel space.',
    ),
    flags.DEFINE_float(
      'shift', None,
      'How far the time grid is shifted towards noise; 1 leaves it as it is. ' + usual,
    ),
    flags.DEFINE_enum(
      'solver', None, ['euler', 'heun'],
      'The ODE solver; heun evaluates the model twice per step. ' + usual,
    ),
  )  # fmt: skip
  return lambda: {flag.name: flag.value for flag in found}


def _join():
  """Joins the run that the flags describe; names missing processes and exits with EXIT_RETRY."""
  from tuna_jax.train import distributed  # imports jax

  f = flags.FLAGS
  try:
    distributed.initialize(
      f.coordinator, f.num_processes, f.process_id, f.init_timeout_s, f.expect_processes
    )
  except distributed.MissingProcesses as error:
    print(f'tuna-jax: {error}', file=sys.stderr)
    sys.exit(EXIT_RETRY)
