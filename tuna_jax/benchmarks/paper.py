"""The numbers of the Tuna paper (arXiv 2512.02014, tables 1 to 6), as TABLES[benchmark].

From a machine-made transcription that was checked against its own sums (docs/benchmarks.md 2). '-'
is not printed or was not found. Show-o2's row of `understanding` is partly by the Tuna authors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

MODELS = ('Tuna 1.5B', 'Tuna 7B', 'Show-o2 1.5B', 'Show-o2 7B')


@dataclasses.dataclass(frozen=True)
class Table:
  """title: for people. rows: {column: {model: value}}, in the paper's order and units."""

  title: str
  rows: Mapping[str, Mapping[str, float]]

  def of(self, model: str) -> dict[str, float]:
    """{column: value} of one model, as far as it is printed."""
    return {column: row[model] for column, row in self.rows.items() if model in row}


# benchmark | title, then a line per column: its name and the values of MODELS
_TEXT = """
understanding | Pictures, lmms-eval
mme_perception         1461.5  1641.5  1450.9  1620.5
gqa                    61.4    63.9    60.0    63.1
realworldqa            62.5    66.1    56.5    64.7
seed_image             69.3    74.7    65.6    69.8
mmmu_val               39.1    49.8    37.1    48.9
mmstar                 54.6    61.2    43.4    56.6
ai2d                   71.4    79.3    69.0    78.6
chartqa                82.1    85.8    40.0    52.3
ocrbench               71.9    74.3    24.5    32.4
video | Clips, lmms-eval
mvbench                54.4    -       49.8    -
videomme               49.1    -       48.0    -
longvideobench_val     49.7    -       49.2    -
lvbench                27.4    -       -       -
geneval | GenEval
single_object          1.00    1.00    .99     1.00
two_object             .94     .97     .86     .87
counting               .83     .81     .55     .58
colors                 .91     .91     .86     .92
position               .81     .88     .46     .52
color_attr             .79     .83     .63     .62
overall                .88     .90     .73     .76
dpg | DPG-Bench
global                 88.87   90.42   87.53   89.00
entity                 90.32   91.68   90.38   91.78
attribute              91.71   90.94   91.34   89.96
relation               91.79   91.87   90.30   91.81
other                  90.14   90.73   91.21   91.64
overall                86.03   86.76   85.02   86.14
oneig | OneIG-Bench, English
alignment              .82     .84     -       .82
text                   .77     .82     -       .00
reasoning              .25     .27     -       .23
style                  -       .40     -       .32
overall                .48     .50     -       .31
imgedit | ImgEdit-Bench
add                    -       4.43    -       -
adjust                 -       4.48    -       -
extract                -       2.46    -       -
replace                -       4.65    -       -
remove                 -       4.55    -       -
background             -       4.52    -       -
style                  -       4.69    -       -
compose                -       4.22    -       -
action                 -       4.76    -       -
overall                -       4.31    -       -
gedit | GEdit-Bench, English, full set (the paper's numbers were not found)
semantics              -       -       -       -
quality                -       -       -       -
overall                -       -       -       -
vbench | VBench
subject_consistency    95.99   -       97.28   -
background_consistency 96.72   -       96.78   -
temporal_flickering    98.02   -       97.68   -
motion_smoothness      98.33   -       98.25   -
dynamic_degree         69.39   -       40.83   -
aesthetic_quality      65.88   -       65.15   -
imaging_quality        66.83   -       67.06   -
object_class           95.41   -       94.81   -
multiple_objects       92.31   -       76.01   -
human_action           97.50   -       95.20   -
color                  87.67   -       80.89   -
spatial_relationship   78.12   -       62.61   -
scene                  58.59   -       57.67   -
appearance_style       23.18   -       23.29   -
temporal_style         24.68   -       25.27   -
overall_consistency    27.71   -       27.00   -
quality                84.32   -       82.10   -
semantic               83.04   -       78.31   -
total                  84.06   -       81.34   -
"""


def _parse(text: str) -> dict[str, Table]:
  tables: dict[str, Table] = {}
  rows: dict[str, dict[str, float]] = {}
  for line in text.strip().splitlines():
    if '|' in line:
      name, title = (part.strip() for part in line.split('|'))
      rows = {}
      tables[name] = Table(title, rows)
    else:
      column, *values = line.split()
      rows[column] = {m: float(v) for m, v in zip(MODELS, values, strict=True) if v != '-'}
  return tables


TABLES = MappingProxyType(_parse(_TEXT))
