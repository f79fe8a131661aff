"""Tuna (arXiv 2512.02014) in JAX: one model that reads, draws, edits and films.

    import tuna_jax

    tuna_jax.fit('my.json', 'runs/mine', minutes=15)        # your own data, with a report
    generator = tuna_jax.open_generator('runs/stage3')      # a run or a weights directory
    generator.image('a red ball').save('ball.png')
    generator.text('What is this?', images=['ball.png'])
    tuna_jax.train(config, 'runs/stage1')                   # the same call continues a stopped run
    tuna_jax.evaluate(generator, 'train.json', 'test.json').rows

open_generator   loads a run or weights and returns a Generator
Generator        text, stream, image, edit, video, story; Picture and Clip are what it returns, and
                 show themselves in a notebook
train            trains one stage from a train.config.TrainConfig; `tuna_jax.train` is also the
                 package that holds it (docs/design.md 4)
evaluate         scores a Generator on the records of your own mixture files, trained on and held
                 out
fit              trains a small model on your own data within minutes and reports what it learned
TunaConfig       the configuration of a model; SIZES holds the named ones: tiny, 2b, 7b and others
Guidance         how far drawing moves from what is not asked for: scales, interval, rescaling
UserError        what is raised where the caller must change something; its message says what

Names are imported when they are first used, so `import tuna_jax` does not import jax.
"""

import importlib

_WHERE = {
  'open_generator': 'sample.open',
  'Generator': 'sample.generate',
  'Picture': 'sample.output',
  'Clip': 'sample.output',
  'Guidance': 'sample.image',
  'evaluate': 'evals.own_data',
  'fit': 'small.fit',
  'TunaConfig': 'config',
  'SIZES': 'sizes',
  'UserError': 'config',
}

__all__ = [*_WHERE, 'train', '__version__']  # noqa: PLE0604


def __getattr__(name):
  if name in _WHERE:
    return getattr(importlib.import_module(f'tuna_jax.{_WHERE[name]}'), name)
  if name == 'train':
    return importlib.import_module('tuna_jax.train')
  if name == '__version__':
    return importlib.import_module('importlib.metadata').version('tuna_jax')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return sorted({*globals(), *__all__})
