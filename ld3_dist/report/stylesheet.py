"""The look of the page: the figures' colours as variables, brighter on a dark ground, plain on
paper.
"""

from __future__ import annotations

STYLESHEET = """\
:root {
  --paper: #ffffff; --ink: #1f2328; --muted: #6e7782; --rule: #dfe3e8; --wash: #f6f7f9;
  --learned: #d55e00; --learned-wash: rgba(213, 94, 0, 0.16); --teacher: #57606a;
  --shade0: #f0a35e; --shade1: #e4772a; --shade3: #a84a00; --shade4: #783500;
  --base0: #0072b2; --base1: #4ea3dc; --base2: #2b4f81; --base3: #7fb2c9; --base4: #6b7fd7; --base5: #3c8d9e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --ink: #e6e9ed; --muted: #9aa4af; --rule: #2c323a; --wash: #1b1f25;
    --learned: #ff8a3d; --learned-wash: rgba(255, 138, 61, 0.24); --teacher: #a9b3bd;
    --shade0: #ffe0c2; --shade1: #ffb780; --shade3: #e06a1b; --shade4: #b8530c;
    --base0: #4ba9e6; --base1: #8ecbf5; --base2: #7f9fd6; --base3: #a5d3e6; --base4: #9aa8f0; --base5: #69bccd;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 3rem 1.5rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif;
}
.kicker {
  margin: 0; color: var(--learned); font-size: 0.8rem; font-weight: 600; letter-spacing: 0.06em;
  text-transform: uppercase;
}
h1 { margin: 0.2rem 0 0.8rem; font-size: 2.2rem; line-height: 1.15; letter-spacing: -0.01em; }
h2 { margin: 3.2rem 0 1rem; padding-top: 1rem; border-top: 1px solid var(--rule); font-size: 1.45rem; }
h3 { margin: 0 0 0.6rem; font-size: 1.05rem; }
h4 { margin: 0 0 0.4rem; font-size: 0.9rem; font-weight: 600; }
.headline { margin: 0 0 1.6rem; max-width: 46rem; font-size: 1.2rem; line-height: 1.5; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 0.8rem 1.5rem; margin: 0; }
.facts dt { color: var(--muted); font-size: 0.78rem; }
.facts dd { margin: 0; font-size: 0.92rem; overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; margin: 1.5rem 0 0; padding: 0; list-style: none; }
a { color: var(--base0); }
.scroll, .drawing { overflow-x: auto; }
table {
  width: 100%; border-collapse: collapse; font-size: 0.86rem; font-variant-numeric: tabular-nums; white-space: nowrap;
}
th {
  padding: 0.3rem 0.55rem; white-space: normal; color: var(--muted); font-weight: 500; text-align: left;
  vertical-align: bottom;
}
thead tr:last-child th { border-bottom: 1px solid var(--muted); }
.groups th { padding-bottom: 0; color: var(--ink); font-weight: 600; }
.groups th:not(:first-child), td.first:not(:first-child), th.first:not(:first-child) { padding-left: 1.3rem; }
td { padding: 0.38rem 0.55rem; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { padding-left: 0; }
.num { text-align: right; }
.groups th { text-align: left; }
td.learned { color: var(--learned); }
td.gain {
  min-width: 5.5rem; font-weight: 700;
  background: no-repeat 0 50% / var(--bar, 0%) 70% linear-gradient(var(--learned-wash), var(--learned-wash));
}
tbody tr:hover { background: var(--wash); }
table.plain td:last-child { white-space: normal; min-width: 16rem; }
figure { margin: 2.6rem 0 0; }
.drawing svg { display: block; max-width: 100%; height: auto; min-width: 34rem; }
.samples { margin-top: 2.6rem; }
.samples figure { margin-top: 1rem; }
.samples .drawing svg { min-width: 0; }
figcaption { margin-top: 0.6rem; max-width: 46rem; color: var(--muted); font-size: 0.86rem; }
summary { margin: 1rem 0 0.6rem; cursor: pointer; }
li { margin: 0.35rem 0; max-width: 50rem; }
.empty { padding: 1.2rem; background: var(--wash); border-radius: 0.4rem; }
code { font: 0.9em ui-monospace, "Liberation Mono", Menlo, monospace; }
footer {
  margin-top: 3.5rem; padding-top: 1rem; border-top: 1px solid var(--rule); color: var(--muted); font-size: 0.84rem;
}
footer p { max-width: 46rem; }
@media print {
  :root {
    --paper: #ffffff; --ink: #000000; --muted: #555555; --rule: #cccccc; --learned: #d55e00; --teacher: #57606a;
    --shade0: #f0a35e; --shade1: #e4772a; --shade3: #a84a00; --shade4: #783500;
    --base0: #0072b2; --base1: #4ea3dc; --base2: #2b4f81; --base3: #7fb2c9; --base4: #6b7fd7; --base5: #3c8d9e;
  }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  .scroll, .drawing { overflow: visible; }
  table { font-size: 7.5pt; white-space: normal; }
  figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .drawing svg { min-width: 0; }
  td.gain { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
