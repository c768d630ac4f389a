// The page's own script: the table sorts, filters and compares, a chosen cell shows its knots, its
// pictures and its schedule. All numbers come from the JSON block (report/page_data.py), the state
// is in the address, and nothing is ever requested.
(() => {
"use strict";
const { metrics, cells, unit } = JSON.parse(document.getElementById("data").textContent);
if (!cells.length || !metrics.length) return;

const { abs, floor, log10, max, min } = Math;
const all = (query, inside = document) => [...inside.querySelectorAll(query)];
const escape = text => String(text).replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);
const make = (tag, attributes = {}, html = "") => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.innerHTML = html;
  return node;
};
const known = value => value != null;
const number = value => {
  if (!known(value) || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const power = floor(log10(abs(value)));
  if (power < -5 || power >= 7) return value.toExponential(2);
  const digits = max(2 - power, 0);
  return value.toLocaleString("en-US",
    { minimumFractionDigits: digits, maximumFractionDigits: digits });
};
const range = ends => ends ? `${number(ends[0])}–${number(ends[1])}` : "";

// state: one object, written to the address and read from it

const NONE = { sort: "", solver: "", nfe: "", method: "", status: "", cell: "", row: "",
  metric: metrics[0].id, over: "" };
const FILTERS = ["solver", "nfe", "method", "status"];
const state = { ...NONE };
const read = () => {
  const text = location.hash.slice(1);
  // an anchor of the page
  if (text && !text.includes("=")) return;
  const given = new URLSearchParams(text);
  for (const key in NONE) state[key] = given.get(key) ?? NONE[key];
  if (!metrics.some(m => m.id === state.metric)) state.metric = NONE.metric;
  if (!cells[state.cell]) state.cell = state.row = "";
};
const change = changes => {
  Object.assign(state, changes);
  const told = new URLSearchParams();
  for (const key in NONE) if (state[key] !== NONE[key]) told.set(key, state[key]);
  history.replaceState(null, "", `#${told}`);
  draw();
};
const place = () => metrics.findIndex(m => m.id === state.metric);

// numbers of a cell

const grids = [...new Set(cells.flatMap(c => c.rows)
  .filter(r => r.kind === "baseline").map(r => r.name))].sort();
const baseOf = cell => state.over
  ? cell.rows.find(r => r.kind === "baseline" && r.name === state.over)
  : cell.rows[cell.base];
// over the picked hand-made grid, in the picked metric
const gainOf = (cell, row) => {
  const m = place(), base = baseOf(cell);
  const [mine, theirs] = [row?.v[m], base?.v[m]];
  if (!known(mine) || !known(theirs) || !(mine > 0) || !(theirs > 0)) return {};
  const best = row === cell.rows[cell.best] && state.metric === "eval_loss";
  const ends = best ? cell.gains[base.name] : undefined;
  const undecided = ends && ends[0] <= 1 && ends[1] >= 1;
  return { value: metrics[m].lower ? theirs / mine : mine / theirs, ends, undecided };
};
const told = gain => !gain.value ? "–" : `${number(gain.value)}×` + (gain.ends
  ? `, 95 % interval ${range(gain.ends)}${gain.undecided ? ": undecided" : ""}` : "");
const nameOf = row => row.kind === "learned" ? `learned, ${row.method} from ${row.name}` : row.name;
const label = cell => `${cell.solver} at ${cell.nfe} NFE`;
const sigmas = row => row.s === undefined ? row.t : row.s;

// the table: sorting, filters, gains

const tables = all("table.summary");
const lines = all("tr[data-cell]");
const cellOf = line => cells[line.dataset.cell];
const said = make("p", { class: "count", role: "status", "aria-live": "polite" });

const picker = (title, options, chosen) => {
  const select = make("select", {}, options.map(([value, text]) =>
    `<option value="${escape(value)}">${escape(text)}</option>`).join(""));
  select.onchange = () => chosen(select.value);
  make("label", {}, `<span>${title}</span> `).append(select);
  return select;
};
const tool = (key, title, options) => {
  const select = picker(title, options, value => change({ [key]: value }));
  select.dataset.key = key;
  tools.append(select.parentNode);
};
const tools = make("div", { class: "tools", role: "group", "aria-label": "filter and compare" });
for (const key of FILTERS) {
  const values = [...new Set(cells.map(c => String(c[key])))]
    .sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const options = [["", "all"], ...values.map(value => [value, value])];
  if (values.length > 1) tool(key, key === "nfe" ? "NFE" : key, options);
}
tool("metric", "metric", metrics.map(m => [m.id, m.label]));
if (grids.length) tool("over", "gain over",
  [["", "the best hand-made grid"], ...grids.map(name => [name, name])]);
tools.append(said);
// above everything that they filter
const sections = all("main > section[id^=model-]");
(sections.length > 1 ? sections[0] : document.querySelector(".scroll")).before(tools);

const BUTTONS = [["σ", "copy sigmas"], ["t", "copy timesteps"], ["JSON", "copy JSON"],
  ["↓JSON", "download JSON"], ["↓CSV", "download CSV"]];
// what a button gives; null where the page cannot
const textOf = {
  sigmas: (cell, row) => sigmas(row) && JSON.stringify(sigmas(row)),
  timesteps: (cell, row) => row.n && JSON.stringify(row.n),
  JSON: (cell, row) => row === cell.rows[cell.best] && cell.file &&
    `${JSON.stringify(cell.file, null, 1)}\n`,
  CSV: (cell, row) => [["i", "knot", "sigma", "network time", "timestep"], ...row.t.map((t, i) =>
    [i, t, sigmas(row)?.[i], row.e?.[i], row.n?.[i]])].map(line => `${line.join()}\n`).join(""),
};
const buttons = (c, r) => {
  const cell = cells[c], row = cell.rows[r];
  return !row?.t ? "" : BUTTONS.map(([text, does]) => {
    const title = `${does} of ${escape(`${nameOf(row)}, ${label(cell)}`)}`;
    const off = textOf[does.split(" ")[1]](cell, row) ? "" : "disabled";
    return `<button type="button" data-do="${does}" data-at="${c} ${r}" ${off} title="${title}"
      aria-label="${title}">${text}</button>`;
  }).join("");
};
for (const table of tables) {
  all("thead tr:last-child th", table).forEach(th => {
    const text = th.innerHTML;
    th.innerHTML = `<button type="button" class="sort">${text}</button>`;
    th.firstChild.onclick = () => {
      const [name, way] = state.sort.split(":"), mine = th.dataset.name;
      change({ sort: name !== mine ? `${mine}:asc` : way === "asc" ? `${mine}:desc` : "" });
    };
  });
  table.querySelector(".groups").append(make("th"));
  table.querySelector("thead tr:last-child").append(make("th", {}, "copy, download"));
}
for (const line of lines) {
  const c = line.dataset.cell, cell = cells[c];
  const first = line.querySelector("td:not(.num)") ?? line.cells[0];
  first.innerHTML =
    `<button type="button" class="pick" aria-expanded="false">${first.innerHTML}</button>`;
  line.append(make("td", { class: "act" }, known(cell.best) ? buttons(c, cell.best) : ""));
  line.onclick = event => {
    if (!event.target.closest(".act")) change({ cell: state.cell === c ? "" : c, row: "" });
  };
}
const valueIn = (line, place) => {
  const text = line.cells[place].textContent.trim();
  const value = parseFloat(text.replace(/,/g, ""));
  return text === "–" ? null : Number.isNaN(value) ? text : value;
};
// null last
const order = (a, b, way) => a === null || b === null ? (a === null) - (b === null)
  : (way === "desc" ? -1 : 1) * (typeof a === "string" ? a.localeCompare(b) : a - b);

const drawTable = () => {
  const gains = cells.map(cell => gainOf(cell, cell.rows[cell.best]));
  const top = max(1.01, ...gains.map(gain => gain.value ?? 0));
  for (const line of lines) {
    const cell = cellOf(line), on = line.dataset.cell === state.cell;
    line.hidden = FILTERS.some(key => state[key] && String(cell[key]) !== state[key]);
    line.classList.toggle("on", on);
    line.querySelector(".pick").setAttribute("aria-expanded", on);
    drawGain(line, gains[line.dataset.cell], top);
  }
  const [name, way] = state.sort.split(":");
  for (const table of tables) {
    const heads = all("thead tr:last-child th", table), body = table.tBodies[0];
    const at = heads.findIndex(th => name && th.dataset.name === name);
    for (const th of heads) th.removeAttribute("aria-sort");
    heads[at]?.setAttribute("aria-sort", `${way}ending`);
    const sorted = all("tr", body).sort((a, b) => a.dataset.cell - b.dataset.cell);
    if (at >= 0) sorted.sort((a, b) => order(valueIn(a, at), valueIn(b, at), way));
    // moving a line takes the focus from it
    if (sorted.some((line, i) => line !== body.rows[i])) body.append(...sorted);
  }
  said.textContent = `${lines.filter(line => !line.hidden).length} of ${lines.length} ${unit}s`;
};
const drawGain = (line, { value, ends, undecided }, top) => {
  const main = line.querySelector("td.gain"), interval = line.querySelector("td.interval");
  if (!main) return;
  main.textContent = value ? `${number(value)}×` : "–";
  main.classList.toggle("undecided", !!undecided);
  const bar = value > 1 && !undecided ? Math.round(100 * log10(value) / log10(top)) : 0;
  main.style.setProperty("--bar", `${bar}%`);
  if (interval) interval.textContent = ends
    ? range(ends) + (undecided ? ", undecided" : "") : "–";
};

// charts: the picked metric against NFE, one panel per family

const series = family => {
  const m = place(), found = new Map();
  const add = (name, kind, cell, row) => {
    if (!known(row?.v[m]) || !(row.v[m] > 0)) return;
    if (!found.has(name)) found.set(name, { name, kind, points: [] });
    found.get(name).points.push({ cell, row, x: cell.nfe, y: row.v[m], ends: row.i[m] });
  };
  for (const cell of family) {
    for (const row of cell.rows) if (row.kind === "baseline") add(row.name, "baseline", cell, row);
    if (known(cell.best)) add("learned", "learned", cell, cell.rows[cell.best]);
    add("teacher", "teacher", cell, { kind: "teacher", name: "teacher", v: cell.teacher, i: [] });
  }
  return [...found.values()];
};
const colour = line => line.kind === "baseline"
  ? `var(--base${grids.indexOf(line.name) % 6})` : `var(--${line.kind})`;
const chart = (family, title) => {
  const drawn = series(family);
  const points = drawn.flatMap(line => line.points);
  if (!points.length) return "";
  const [W, H, L, R, T, B] = [330, 230, 44, 74, 22, 34];
  const xs = points.map(p => p.x);
  const ys = points.flatMap(p => [p.y, ...(p.ends ?? [])]).filter(y => y > 0).map(log10);
  const [x0, x1] = [min(...xs), max(...xs)];
  const [y0, y1] = [min(...ys) - 0.05, max(...ys) + 0.05];
  const X = x => x0 === x1 ? (L + W - R) / 2 : L + 8 + (W - L - R - 16) * (x - x0) / (x1 - x0);
  const Y = y => H - B - (H - T - B) * (log10(y) - y0) / (y1 - y0);
  const steps = y1 - y0 < 1.6 ? [1, 2, 5] : [1];
  const ticks = [...Array(Math.ceil(y1 - y0) + 1).keys()]
    .flatMap(i => steps.map(k => k * 10 ** (floor(y0) + i)))
    .filter(y => log10(y) >= y0 && log10(y) <= y1);
  let svg = ticks.map(y => `<line class="rule" x1="${L}" x2="${W - R}" y1="${Y(y)}" y2="${Y(y)}"/>
    <text x="${L - 5}" y="${Y(y) + 3}" class="tick">${+y.toPrecision(2)}</text>`).join("");
  svg += [...new Set(xs)].map(x =>
    `<text x="${X(x)}" y="${H - B + 16}">${x}</text>`).join("");
  svg += `<text x="${(L + W - R) / 2}" y="${H - 3}">network evaluations</text>`;
  const chosen = family.includes(cells[state.cell]) && chosenRow();
  const ends = [];
  for (const line of drawn) {
    const on = chosen && (chosen.kind === "learned" ? line.kind === "learned"
      : line.name === chosen.name);
    const path = line.points.map(p => `${X(p.x)},${Y(p.y)}`).join(" ");
    svg += `<g class="line${on ? " on" : chosen ? " off" : ""}" style="--c: ${colour(line)}">` +
      `<polyline points="${path}"${line.kind === "teacher" ? ' stroke-dasharray="5 4"' : ""}/>`;
    for (const p of line.points) {
      if (p.ends?.[0] > 0) svg += `<line class="ends" x1="${X(p.x)}" x2="${X(p.x)}" ` +
        `y1="${Y(p.ends[0])}" y2="${Y(p.ends[1])}"/>`;
      const gain = line.kind === "learned" ? `, gain ${told(gainOf(p.cell, p.row))}` : "";
      const tip = `${line.name}, ${p.x} NFE: ${number(p.y)}${
        p.ends ? ` (95 % interval ${range(p.ends)})` : ""}${gain}`;
      const ring = on && p.cell === cells[state.cell] ? " chosen" : "";
      svg += `<circle class="dot${ring}" cx="${X(p.x)}" cy="${Y(p.y)}" r="${ring ? 6 : 3.5}"/>` +
        `<circle class="hit" cx="${X(p.x)}" cy="${Y(p.y)}" r="10" data-tip="${escape(tip)}" ` +
        `data-pick="${cells.indexOf(p.cell)} ${p.cell.rows.indexOf(p.row)}"/>`;
    }
    svg += "</g>";
    const last = line.points.reduce((a, b) => b.x >= a.x ? b : a);
    ends.push({ y: Y(last.y), x: X(last.x), line });
  }
  ends.sort((a, b) => a.y - b.y);
  ends.forEach((end, i) => {
    if (i) end.y = max(end.y, ends[i - 1].y + 11);
    svg += `<text class="name" x="${W - R + 6}" y="${end.y + 3}" style="fill: ${colour(end.line)
      }">${escape(end.line.name.slice(0, 13))}</text>`;
  });
  return `<figure><h4>${escape(title)}</h4><svg viewBox="0 0 ${W} ${H}" role="img" aria-label="${
    escape(`${metrics[place()].label} against NFE for ${title}; the table has the same numbers`)
  }">${svg}</svg></figure>`;
};
const drawCharts = () => {
  for (const host of all(".charts")) {
    const mine = cells.filter(c => c.section === +host.dataset.section);
    const families = [...new Set(mine.map(c => c.family))];
    const html = families.map(name => chart(mine.filter(c => c.family === name), name)).join("");
    host.innerHTML = `<h3>${escape(metrics[place()].label)} against NFE</h3>` + (html
      ? `<div class="panels-now">${html}</div>` : "<p>It was not measured here.</p>");
  }
};

// a chosen cell: its knots, its pictures, its schedule

const detail = make("section", { class: "detail", "aria-label": "chosen cell" });
const chosenRow = () => {
  const cell = cells[state.cell];
  return cell && (cell.rows[state.row === "" ? cell.best : state.row] ?? cell.rows[0]);
};
const knots = (cell, chosen, W) => {
  const base = baseOf(cell);
  const shown = [...new Set([chosen, cell.rows[cell.best], base,
    ...cell.rows.filter(r => r.kind === "baseline").slice(0, 3)])].filter(r => r?.t);
  if (!shown.length) return "";
  const levels = row => sigmas(row) ?? row.t;
  const values = shown.flatMap(levels);
  const log = min(...values) > 0 && max(...values) / min(...values) > 30;
  const scale = v => log ? log10(v) : v;
  const [high, low] = [scale(max(...values)), scale(min(...values))];
  const X = v => 8 + (W - 16) * (high - scale(v)) / (high - low || 1);
  let y = 0, svg = "";
  for (const row of shown) {
    const main = row === chosen, ink = colour({ kind: row.kind, name: row.name });
    const at = levels(row);
    y += 34;
    svg += `<g class="${main ? "on" : ""}" style="--c: ${ink}">
      <text class="name" x="8" y="${y - 11}">${escape(nameOf(row))}</text>
      <line class="ends" x1="${X(at[0])}" x2="${X(at.at(-1))}" y1="${y}" y2="${y}"/>`;
    at.forEach((v, i) => {
      const time = row.e?.length === at.length - 1 && row.e[i];
      svg += `<line class="knot" x1="${X(v)}" x2="${X(v)}" y1="${y - 6}" y2="${y + 6}"/>
        <rect class="hit" x="${X(v) - 6}" y="${y - 9}" width="12" height="18" data-tip="knot ${
        i}: ${number(v)}${time ? `, network time ${number(time)}` : ""}"/>`;
    });
    svg += "</g>";
  }
  return `<h4>Knots, from noise to data</h4><svg class="knots" viewBox="0 0 ${W} ${y + 14}"
    role="img" aria-label="knots of ${escape(shown.map(nameOf).join("; "))}">${svg}</svg>`;
};
const swipe = cell => {
  const found = all(".strips").find(node => node.dataset.cell === cell.cell);
  const images = found ? all("img", found) : [];
  if (images.length < 2) return null;
  const { count, width, height } = found.dataset;
  const kinds = images.map((image, i) => [i, image.previousElementSibling.textContent]);
  const factors = [1, 2, 3, 4, 6, 8, 12, 16];
  const box = make("div", { class: "swipe" }, "<h4>The same noise: swipe between two</h4>");
  const [left, right, size] = [["left", kinds, kinds.length - 2], ["right", kinds,
    kinds.length - 1], ["enlarged", factors.map(k => [k, `${k}×`]),
    factors.findLast(k => k * width <= 112) ?? 1]].map(([title, options, value]) => {
    const select = picker(title, options, fill);
    select.value = value;
    box.append(select.parentNode);
    return select;
  });
  const slider = make("input",
    { type: "range", min: 0, max: 100, value: 50, "aria-label": "share of the left picture" });
  const tiles = make("div", { class: "tiles" });
  box.append(slider, tiles);
  function fill() {
    const k = +size.value, w = width * k, h = height * k;
    const layer = (image, i) => `<i style="background: url(${images[image].src
      }) ${-i * w}px 0 / ${count * w}px ${h}px"></i>`;
    tiles.innerHTML = [...Array(+count).keys()].map(i => `<div style="width: ${w}px; height: ${
      h}px">${layer(right.value, i)}${layer(left.value, i)}</div>`).join("");
  }
  slider.oninput = () => tiles.style.setProperty("--cut", `${100 - slider.value}%`);
  fill();
  return box;
};
const code = cell => cell.code.map(([title, text]) => `<h4>${title}</h4><div class="code"><pre
  tabindex="0"><code>${escape(text)}</code></pre><button type="button" data-do="copy text">copy` +
  "</button></div>").join("");
const drawDetail = () => {
  const cell = cells[state.cell];
  if (!cell) { detail.remove(); return; }
  const chosen = chosenRow(), m = place();
  const line = lines.find(l => l.dataset.cell === state.cell);
  line.closest(".scroll").after(detail);
  const rows = cell.rows.map((row, r) => `<tr class="${row === chosen ? "on" : ""}" data-row="${r}">
    <td><button type="button" class="pick">${escape(nameOf(row))}</button></td>
    <td class="num">${known(row.gamma) ? number(row.gamma) : "–"}</td>
    <td class="num">${known(row.seed) ? row.seed : "–"}</td><td>${escape(row.status)}</td>
    <td class="num">${number(row.v[m])}</td>
    <td class="num">${row.kind === "learned" ? told(gainOf(cell, row)) : "–"}</td>
    <td class="act">${buttons(state.cell, r)}</td></tr>`).join("");
  const best = cell.rows[cell.best];
  detail.innerHTML = `<h3>${escape(label(cell))} on ${escape(cell.model)}</h3>
    <p>${best ? `Gain in ${escape(metrics[m].label)} over ${
      escape(baseOf(cell)?.name)}: ${told(gainOf(cell, best))}. Best: ${escape(nameOf(best))}.`
      : "Nothing has been learned here yet."}</p>
    <p class="act">${buttons(state.cell, cell.best)}</p>
    ${chosen ? knots(cell, chosen, max(300, detail.clientWidth - 34)) : ""}
    <div class="here"></div>
    <details${state.row === "" ? "" : " open"}><summary>Every schedule of this cell${cell.more
      ? ` (${cell.more} more in the table of results)` : ""}</summary>
    <div class="scroll" tabindex="0"><table><thead><tr><th>schedule</th><th class="num">γ</th>
    <th class="num">seed</th><th>status</th><th class="num">${escape(metrics[m].label)}</th>
    <th class="num">gain</th><th>copy, download</th></tr></thead>
    <tbody>${rows}</tbody></table></div>
    </details>${code(cell)}`;
  const pictures = swipe(cell);
  if (pictures) detail.querySelector(".here").replaceWith(pictures);
  for (const row of all("tr[data-row]", detail)) row.onclick = event => {
    if (event.target.closest(".act")) return;
    change({ row: row.dataset.row });
    detail.querySelector("tr.on .pick").focus();
  };
};

// copy, download, hover

const copy = async text => {
  try { await navigator.clipboard.writeText(text); } catch {
    // pages from a file may have no clipboard
    const area = make("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
};
const act = async button => {
  const [verb, what] = button.dataset.do.split(" "), [c, r] = (button.dataset.at ?? "").split(" ");
  const row = cells[c]?.rows[r];
  const text = row ? textOf[what](cells[c], row) : button.previousElementSibling.textContent;
  if (verb === "copy") await copy(text);
  else {
    const link = make("a", { download: `${row.key}.${what.toLowerCase()}` });
    link.href = URL.createObjectURL(new Blob([text]));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  said.textContent = `${what}: ${verb === "copy" ? "copied" : "downloaded"}`;
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), 1200);
};
const tip = make("div", { class: "tip", hidden: "" });
document.body.append(tip);
document.addEventListener("pointerover", ({ target }) => {
  const text = target.dataset?.tip;
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const box = target.getBoundingClientRect();
  tip.style.left = `${max(8, min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
  const above = box.top - tip.offsetHeight - 6;
  tip.style.top = `${above < 0 ? box.bottom + 6 : above}px`;
});
document.addEventListener("click", ({ target }) => {
  const button = target.closest?.("[data-do]"), point = target.closest?.("[data-pick]");
  if (button) act(button);
  if (point) {
    const [cell, row] = point.dataset.pick.split(" ");
    if (row !== "-1") change({ cell, row: +row === cells[cell].best ? "" : row });
  }
});

const draw = () => {
  for (const select of all("select[data-key]", tools)) select.value = state[select.dataset.key];
  drawTable();
  drawCharts();
  drawDetail();
  for (const node of all(".strips"))
    node.classList.toggle("on", node.dataset.cell === cells[state.cell]?.cell);
};
document.documentElement.classList.add("scripted");
addEventListener("hashchange", () => { read(); draw(); });
read();
draw();
})();
