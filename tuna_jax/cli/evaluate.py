"""Scores a trained model on held-out compositions, each score beside its floor, ceiling and target.

  tuna-jax evaluate --workdir=RUNS [--stage=stage3] [--report=DIR]

RUNS holds the runs stage1, stage2, stage3 (as launch/quickstart.sh leaves them), or is one run
itself. A model trained on the rendered world gets the score table of the quickstart; one trained on
a mixture file of your own is judged on that file and on --test_mixture, by default
mixture_test.json beside it; --data=FILE says the same. --report writes a page to look at,
index.html, and report.json.
"""

import os
import sys
import time

from absl import flags

from tuna_jax import files
from tuna_jax.cli import app, options
from tuna_jax.config import UserError, nearest

_WORKDIR = flags.DEFINE_string('workdir', None, 'The directory of the runs, or of one run.')
_STAGE = flags.DEFINE_string(
  'stage', '', 'The run below --workdir to evaluate; the last stage trained by default.'
)
_REPORT = flags.DEFINE_string(
  'report', '', 'The directory that index.html and report.json are written to.'
)
_N = flags.DEFINE_integer('n', 200, 'How many items to judge per row of the table.', lower_bound=1)
_TARGETS = flags.DEFINE_enum(
  'targets',
  'tiny',
  ['tiny', 'fast'],
  'The targets to compare with: of the quickstart, or of its --fast run.',
)
_TEST = flags.DEFINE_string(
  'test_mixture', '', 'The mixture file of your own records that were held out from training.'
)
flags.DEFINE_alias('data', 'test_mixture')
_GUIDANCE = flags.DEFINE_float(
  'guidance',
  None,
  'The scale of guidance by the text; 1 is none. By default it is what the run says.',
)
_sampler = options.define_sampler()
_model_options = options.define_generator(batch_size=50)

STAGES = ('lora', 'stage3', 'stage2', 'stage1')  # the last one that is there is taken


def main(argv):
  del argv
  if not _WORKDIR.value:
    raise UserError('--workdir is required: the directory of the runs')
  run = find_run(_WORKDIR.value, _STAGE.value)
  import jax

  from tuna_jax import sharding
  from tuna_jax.data.sources import read_mixture
  from tuna_jax.evals import own_data, report
  from tuna_jax.evals.results import table
  from tuna_jax.sample.open import open_generator
  from tuna_jax.toy import evaluate as world
  from tuna_jax.train import checkpoint
  from tuna_jax.weights import store

  began, options = time.perf_counter(), _model_options()
  config = checkpoint.read_config(run)
  mixture = config.data.mixture
  if mixture != 'shapes':
    mixture = str(store.located(mixture, files.absolute(run)))
  own, test = not is_world(mixture), _TEST.value
  if test and not own:
    raise UserError(
      f'--test_mixture={test}: {run} was trained on the rendered world and is judged on held-out '
      'items of its own; leave the flag out'
    )
  if own:
    test = test or os.path.join(os.path.dirname(mixture), 'mixture_test.json')
    read_mixture(test)  # before the model is loaded
  # Whole weights on every device; the rows of a batch are spread over the devices.
  mesh = sharding.make_mesh(data=-1, fsdp=1)
  generator = open_generator(run, mesh=mesh, **options)
  how = generator.how('t2i', _GUIDANCE.value, **_sampler())
  print(f'evaluating {run}', flush=True)
  say = lambda line: print(line, flush=True)
  with jax.set_mesh(mesh):
    if not own:
      result = world.evaluate(generator, _N.value, how, _TARGETS.value, say)
      title = 'A tiny Tuna sees, draws, edits and films'
    else:
      result = own_data.evaluate(generator, mixture, test, _N.value, how, say)
      title = f'A tiny Tuna learns from {mixture}'
  print(table(result.rows, result.titles))
  if _REPORT.value:
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    model, optimizer = config.model, config.optimizer
    facts = {
      'run': run,
      'data': mixture,
      'parameters': f'{count(generator.params):,} and {count(generator.vae_params):,} of the VAE',
      'sampler': f'{how.solver}, {how.points - 1} steps, guidance {how.guidance.scale:g}, '
      f'shift {how.shift:g}',
      'weights': 'averaged (EMA)' if options['ema'] else 'as trained',
      'stage': f'{config.stage}: {config.steps} steps of {config.rows} x {config.length} tokens',
      'learning rate': f'{optimizer.lr:g}, {optimizer.schedule}, warm-up {optimizer.warmup}',
      'design': model.design,
      'decoder': describe(model.decoder),
      **({'vision tower': describe(model.vision)} if model.vision else {}),
      'flow head': describe(model.flow_head),
      'devices': f'{jax.device_count()} {jax.devices()[0].device_kind}, {os.cpu_count()} cores',
    }
    command = ' '.join(['tuna-jax', 'evaluate', *sys.argv[1:]])
    page = report.write(
      _REPORT.value,
      result,
      _WORKDIR.value,
      title=title,
      facts=facts,
      command=command,
      seconds=time.perf_counter() - began,
    )
    print(f'report: {page}')


def find_run(workdir: str, stage: str) -> str:
  """The run to evaluate: `workdir` itself, the named stage below it, or the last one trained."""
  root = files.path(workdir)
  if not stage and (root / 'config.json').exists():
    return workdir
  names = [p.name for p in root.iterdir() if (p / 'config.json').exists()] if root.is_dir() else []
  if stage and stage not in names:
    raise UserError(f'--stage={stage}: no such run in {workdir}{nearest(stage, names)}')
  found = [name for name in ([stage] if stage else STAGES) if name in names]
  if not found:
    raise UserError(f'--workdir={workdir}: no run there; expected {" or ".join(STAGES)}, or a run')
  return str(root / found[0])


def is_world(mixture: str) -> bool:
  """Whether a mixture is the rendered world: by name, or a file all of whose rows are."""
  from tuna_jax.data.sources import read_mixture

  return mixture == 'shapes' or all(row.path == 'shapes' for row in read_mixture(mixture))


def describe(tower) -> str:
  """A tower in words."""
  return (
    f'{tower.num_layers} layers, {tower.dim} wide, {tower.num_heads} heads, '
    f'{tower.num_kv_heads} key/value heads'
  )


if __name__ == '__main__':
  app.run(main)
