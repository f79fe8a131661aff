"""Named mixtures: `((start, ((task, weight), ...)), ...)`.

A start below 1 is a share of the run's steps, otherwise a step. From a start on, examples are drawn
by its weights.
"""

DECODER = ((0.0, (('text', 1.0),)),)
VAE = ((0.0, (('t2i', 0.7), ('t2v', 0.3))),)

# Stage 1: the decoder is frozen; the visual side learns to describe and to draw.
STAGE1 = ((0.0, (('t2i', 0.65), ('caption', 0.35))),)

# fmt: off
# Stage 2: everything trains; instructions, editing and clips join part-way. Questions get the most
# examples, since they are learned slowest.
STAGE2 = (
  (0.0, (('t2i', 0.65), ('caption', 0.25), ('text', 0.1))),
  (0.05, (('t2i', 0.28), ('caption', 0.05), ('vqa', 0.49), ('edit', 0.16), ('text', 0.02))),
  (0.2, (('t2i', 0.17), ('caption', 0.05), ('vqa', 0.49), ('edit', 0.12), ('t2v', 0.09),
         ('video_caption', 0.02), ('video_vqa', 0.06))),
)

# Stage 3: instruction following, editing and high-quality generation at a low rate.
STAGE3 = (
  (0.0, (('t2i', 0.25), ('caption', 0.05), ('vqa', 0.43), ('edit', 0.11), ('t2v', 0.1),
         ('video_vqa', 0.06))),
)
# fmt: on

MIXTURES = {'decoder': DECODER, 'vae': VAE, 'stage1': STAGE1, 'stage2': STAGE2, 'stage3': STAGE3}
