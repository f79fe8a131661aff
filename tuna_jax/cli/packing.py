"""`tuna-jax data pack`: its flags, and what it does. A part of the verb `data`."""

import os
import shlex

from absl import flags

flags.disclaim_key_flags()  # they are flags of the verb that calls `define_pack`

PACK_FLAGS = ('verify', 'encode', 'quality', 'side', 'beam')


def define_pack():
  """Defines PACK_FLAGS, and returns the function that packs: (mixture, out, media config, records
  per shard, limit, processes) -> `pack.Packed`.
  """
  verify = flags.DEFINE_bool(
    'verify', True, 'Whether every picture and clip is decoded, and left out if that fails.'
  )
  encode = flags.DEFINE_string(
    'encode', '', 'The format pictures are written in (jpeg, webp, png); by default, their own.'
  )
  quality = flags.DEFINE_integer('quality', 90, 'The quality of --encode=jpeg and webp.', 1, 100)
  side = flags.DEFINE_integer(
    'side', 0, 'The shorter side that larger pictures are brought to; it needs --encode.', 0
  )
  beam = flags.DEFINE_string(
    'beam', None, 'The options of an Apache Beam pipeline, which then makes the shards, such as '
    '"--runner=DataflowRunner --project=P --region=R".'
  )  # fmt: skip

  def pack(mixture, out, media, shard_records, limit, processes):
    import tqdm

    from tuna_jax.data import pack as packing

    config = packing.PackConfig(
      shard_records, limit, verify.value, encode.value, quality.value, side.value
    )
    planned = packing.plan(mixture, out, config, media)
    if beam.value is not None:
      packing.make_with_beam(planned, shlex.split(beam.value))
    else:
      count = sum(shard.stop - shard.start for shard in planned)
      with tqdm.tqdm(total=count, unit=' records', mininterval=1) as shown:
        cores = processes or len(os.sched_getaffinity(0))
        for done in packing.make_all(planned, cores, shown.write):
          shown.update(done)
    return packing.finish(mixture, out, planned)

  return pack
