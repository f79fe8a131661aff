"""The style sheet of a report; light or dark as the reader's system is."""

STYLE = r"""
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #fff; --ink: #1d2129;
  --soft: #69707d; --line: #e4e2dd; --good: #1f8a55; --bad: #c2462f; --bar: #6b8fd6;
  --foot: #34435e }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15171c; --card: #1d2027; --ink: #e8e8ea; --soft: #9aa0ac; --line: #31353e;
    --good: #4cc38a; --bad: #f0795f; --bar: #6f95e0; --foot: #b9c7e4 }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 80px }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -.02em; margin: 0 0 20px;
  text-wrap: balance }
h2 { font-size: 19px; letter-spacing: -.01em; margin: 48px 0 4px }
.note { color: var(--soft); margin: 0 0 14px; max-width: 74ch; font-size: 14px }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px; color: var(--soft); font-size: 13px }
.tile b { display: block; color: var(--ink); font-size: 24px; font-weight: 650;
  letter-spacing: -.01em; font-variant-numeric: tabular-nums }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 500 }
td { text-align: right; padding: 8px 0 8px 18px; white-space: nowrap; vertical-align: top }
th { padding: 8px 0; vertical-align: top }
thead th { color: var(--soft); font-size: 12.5px; text-align: right; padding: 0 0 4px 18px }
tbody tr, .steps tr, .facts tr { border-top: 1px solid var(--line) }
.scores tbody th { min-width: 300px }
.yes { color: var(--good) } .no { color: var(--bad) } .yes, .no { font-size: 13px }
.bar { position: relative; height: 7px; margin-top: 6px; border-radius: 4px;
  background: var(--line) }
.bar i, .bar s { position: absolute; left: 0; top: 0; bottom: 0; border-radius: 4px }
.bar i { background: var(--bar) }
.bar.good i { background: var(--good) }
.bar.bad i { background: var(--bad) }
.bar s { background: var(--foot) }
.bar u { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--ink);
  border-radius: 1px }
.steps td:nth-child(2) { padding-right: 18px }
.steps td:last-child, .facts td { text-align: left; white-space: normal }
.steps td:last-child { width: 70% }
.steps th, .facts th { white-space: nowrap; padding-right: 18px }
.total { font-weight: 650 }
code { font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, monospace; overflow-wrap: anywhere;
  color: var(--soft) }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px }
figcaption { font-size: 13px; line-height: 1.4 }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 14px }
.curves figure { padding: 12px 14px 10px }
.curves figcaption { color: var(--soft); margin-bottom: 6px }
svg { display: block; width: 100%; height: auto }
svg text { font: 10.5px system-ui, sans-serif; fill: var(--soft) }
.grid { stroke: var(--line); stroke-width: 1 }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round; stroke: currentColor }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 12px; color: var(--soft);
  margin-top: 4px }
.legend i { display: inline-block; width: 10px; height: 3px; border-radius: 2px;
  margin-right: 5px; vertical-align: middle; background: currentColor }
.legend b { font-weight: 600; color: var(--ink); font-variant-numeric: tabular-nums }
.c0 { color: #7d8594 }
.c1 { color: #d9822b }
.c2 { color: #3d74d0 }
.c3 { color: #2f9e68 }
.c4 { color: #c0437c }
.c5 { color: #8a63d2 } .c6 { color: #1b9aaa } .c7 { color: #a08512 } .c8 { color: #5b6b86 }
.gallery { display: grid; gap: 12px }
.gallery.drawn { grid-template-columns: repeat(auto-fill, minmax(154px, 1fr)) }
.gallery.pairs { grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)) }
.gallery.talk { grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)) }
.gallery figure { padding: 12px; border-top: 3px solid var(--good) }
.gallery figure.wrong { border-top-color: var(--bad) }
.gallery img { width: 96px; height: 96px; display: block; border-radius: 6px;
  border: 1px solid var(--line); image-rendering: pixelated; background: #fff }
.drawn img { width: 128px; height: 128px }
.strip { display: flex; gap: 10px; margin-bottom: 8px }
.strip small { color: var(--soft); font-size: 12px }
.gallery figcaption::before { content: "\2713\a0"; color: var(--good); font-weight: 700 }
.gallery .wrong figcaption::before { content: "\2717\a0"; color: var(--bad) }
.talk figure { display: flex; gap: 14px } .talk figcaption { flex: 1; min-width: 0 }
.talk figcaption p { margin: 0 0 3px; overflow-wrap: anywhere }
.talk .asked { color: var(--soft); display: inline }
.talk .said { font-weight: 600; margin-top: 3px }
.talk .wanted { color: var(--good) }
.talk .wanted::before { content: "wanted: "; color: var(--soft) }
"""
