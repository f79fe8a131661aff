"""Downloads a published model or part, verifies it, and converts a model to weights of ours.

  tuna-jax get                       lists the names
  tuna-jax get showo2-1.5b [--dry-run] [--output=DIR]
  tuna-jax get wan2.1-vae

What it needs (bytes on disk, memory) is printed first. Files come from the Hugging Face hub into
its own cache (HF_HOME), or from the mirror that HF_ENDPOINT names, and every size and digest that
the hub publishes is verified. A model is written to ~/.cache/tuna_jax/NAME, or under
$TUNA_JAX_CACHE, where `tuna-jax generate --model=NAME` finds it. Of a part, the folder that holds
it is printed, which is what `tuna-jax convert assemble` takes.
"""

from absl import flags

from tuna_jax.cli import app

_OUTPUT = flags.DEFINE_string(
  'output', None, 'The directory that a model is written to; it must not exist yet.'
)
_DRY = flags.DEFINE_bool('dry-run', False, 'Print what would be downloaded, and download nothing.')


def main(argv):
  import huggingface_hub

  from tuna_jax.weights import published

  if len(argv) == 1:
    print(published.table())
    return
  name, hub = argv[1], huggingface_hub.HfApi()
  published.check(name)
  if name in published.MODELS:
    output = _OUTPUT.value or published.folder(name)
    published.obtain(hub, published.MODELS[name], output, dry_run=_DRY.value)
    return
  if _OUTPUT.value:
    raise app.UserError(f'{name}: is a part, which stays in the cache of the hub; drop --output')
  listing = published.look_up(hub, published.PARTS[name])
  size = published.gigabytes(listing.size)
  print(f'{listing.source.repo}: {size} on disk, licence {listing.source.licence}')
  for file in listing.files:
    print(f'  {file.name}  {published.gigabytes(file.size)}')
  if not _DRY.value:
    print(published.fetch(hub, listing))


if __name__ == '__main__':
  app.run(main, positional=('NAME?',))
