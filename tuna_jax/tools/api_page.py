"""docs/api.md from the docstrings of what `import tuna_jax` offers.

python -m tuna_jax.tools.api_page > docs/api.md
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import tuna_jax

HEAD = """# The API

Everything below is an attribute of `tuna_jax`, which imports it when it is first used. The text is
that of the docstrings: `python -m tuna_jax.tools.api_page > docs/api.md` writes this page.
Arguments have the names of other libraries as well: `width` and `height` for `size`,
`num_inference_steps` for `points` - 1, `guidance_scale`, `negative_prompt`, `num_frames`,
`max_tokens`, `image` for `images`, and `prompt` for `messages` or `instruction`.
[sampling.md](sampling.md) has examples.
"""
SKIPPED = ('SIZES', '__version__')


def functions() -> Iterator[tuple[str, Callable]]:
  """(name, function) of every public function and method, in the order of the page."""
  for name in tuna_jax.__all__:
    thing = getattr(tuna_jax, name)
    if name in SKIPPED:
      continue
    if inspect.isclass(thing):
      for method, value in vars(thing).items():
        if inspect.isfunction(value) and not method.startswith('_'):
          yield f'{name}.{method}', value
    else:
      yield name, thing.__class__.__call__ if inspect.ismodule(thing) else thing


def page() -> str:
  """The page as Markdown."""
  methods, out = dict(functions()), [HEAD]
  for name in tuna_jax.__all__:
    thing = getattr(tuna_jax, name)
    if name == 'SIZES':
      out.append(
        f'## SIZES\n\n{{name: TunaConfig}} of {", ".join(f"`{size}`" for size in thing)}.\n'
      )
    elif inspect.isclass(thing):
      out.append(f'## {name}\n\n{_block(inspect.getdoc(thing))}')
      out += [_entry('###', m, f) for m, f in methods.items() if m.startswith(f'{name}.')]
    elif name in methods:
      out.append(_entry('##', name, methods[name]))
  return '\n'.join(out)


def _entry(level: str, name: str, function: Callable) -> str:
  signature = inspect.signature(function)
  kept = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name != 'self']
  shown = str(signature.replace(parameters=kept, return_annotation=signature.empty))
  return (
    f'{level} {name}\n\n    {name.rpartition(".")[2]}{shown}\n\n{_block(inspect.getdoc(function))}'
  )


def _block(text: str | None) -> str:
  return f'```text\n{text}\n```\n'


if __name__ == '__main__':
  print(page(), end='')
