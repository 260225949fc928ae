const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const state = { metric: data.metric, axis: data.axis, weight: data.smooth, log: false, hidden: new Set() };
const titles = Object.fromEntries(data.metrics.map(m => [m.name, m.title]));

function element(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function html(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const swatch = run => element("svg", { class: "swatch", viewBox: "0 0 24 10", "aria-hidden": "true" },
  element("line", { x1: 0, x2: 24, y1: 5, y2: 5, "stroke-dasharray": run.dash }));

// The same as smooth() of style.py: an average corrected for its start, over what is finite.
function smoothed(values, weight) {
  let average = 0, known = 0;
  return values.map(value => {
    if (value === null) return null;
    known += 1;
    average = weight * average + (1 - weight) * value;
    return average / (1 - weight ** known);
  });
}

const short = value => {
  const size = Math.abs(value);
  if (size >= 1e9) return +(value / 1e9).toPrecision(4) + " G";
  if (size >= 1e6) return +(value / 1e6).toPrecision(4) + " M";
  if (size >= 1e4) return +(value / 1e3).toPrecision(4) + " k";
  if (size && size < 1e-3) return value.toExponential().replace(/(\.\d{2})\d+/, "$1");
  return String(+value.toPrecision(5));
};

// Round values at a distance that leaves about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(+(i * step).toPrecision(12));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
    for (const m of [1, 2, 5]) if (m * 10 ** e >= low * 0.999 && m * 10 ** e <= high * 1.001) found.push(m * 10 ** e);
  if (found.length > 8) return found.filter(v => Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-9);
  return found.length < 2 ? ticks(low, high, 4).filter(v => v > 0) : found;
}

function scale(domain, range, log) {
  const f = log ? Math.log : v => v, [a, b] = domain.map(f), [c, d] = range;
  const to = v => c + (f(v) - a) / (b - a || 1) * (d - c);
  to.back = p => { const v = a + (p - c) / (d - c) * (b - a); return log ? Math.exp(v) : v; };
  return to;
}

// The lowest and highest value; a loss that blew up does not press the others flat (ceiling() of style.py).
function extent(values, metric, starts, log) {
  let low = Math.min(...values), high = Math.max(...values), beyond = null;
  const limit = 1.25 * Math.max(...starts);
  if (metric.includes("loss") && high > limit && limit > 0) [beyond, high] = [high, limit];
  if (low === high) { const room = Math.abs(low) * 0.05 || 1; return { low: low - (log ? room / 2 : room), high: high + room, beyond }; }
  const room = log ? (high / low) ** 0.04 : (high - low) * 0.05;
  return log ? { low: low / room, high: high * room, beyond } : { low: low - room, high: beyond ? high : high + room, beyond };
}

function frame(width, height, box, xTicks, yTicks, x, y, xName, yName, label) {
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  for (const [value, text] of yTicks) {
    svg.append(element("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }),
      element("text", { x: box.left - 7, y: y(value) + 4, "text-anchor": "end" }, text));
  }
  svg.append(element("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
  for (const [value, text] of xTicks) {
    svg.append(element("line", { class: "axis", x1: x(value), x2: x(value), y1: box.bottom, y2: box.bottom + 5 }),
      element("text", { x: x(value), y: box.bottom + 19, "text-anchor": "middle" }, text));
  }
  svg.append(element("text", { class: "name", x: (box.left + box.right) / 2, y: height - 4, "text-anchor": "middle" }, xName),
    element("text", { class: "name", x: 0, y: 13 }, yName));
  return svg;
}

const cross = (x, y, size = 4.5) => `M${x - size} ${y - size}l${2 * size} ${2 * size}M${x - size} ${y + size}l${2 * size} ${-2 * size}`;
const visible = () => data.runs.filter(run => !state.hidden.has(run.id));

function lines() {
  const unit = data.axes.find(a => a.name === state.axis);
  return visible().filter(run => run.series[state.metric]).map(run => {
    const { frame: at, y: raw } = run.series[state.metric];
    const x = run.frames[at][state.axis];
    const smooth = state.weight > 0 && data.metrics.find(m => m.name === state.metric).smooth;
    return { run, x: (x || []).map(v => v * unit.factor), raw, y: smooth ? smoothed(raw, state.weight) : raw, smooth };
  }).filter(line => line.x.length && line.raw.some(v => v !== null && !(state.log && v <= 0)));
}

function drawCurves() {
  const host = $("chart"), width = Math.max(280, host.clientWidth), height = Math.round(Math.min(460, Math.max(270, width * 0.5)));
  const unit = data.axes.find(a => a.name === state.axis), drawn = lines();
  const tip = html("div", { class: "tip", hidden: "" });
  if (!drawn.length) {
    host.replaceChildren(html("p", { class: "soft" }, "No run that is switched on has this metric."));
    return;
  }
  const usable = v => v !== null && !(state.log && v <= 0);
  const all = drawn.flatMap(l => l.raw.filter(usable)), starts = drawn.map(l => l.raw.find(usable));
  const { low, high, beyond } = extent(all, state.metric, starts, state.log);
  const yValues = state.log ? logTicks(low, high) : ticks(low, high, height / 65);
  const texts = yValues.map(short);
  const box = { left: 16 + 7 * Math.max(...texts.map(t => t.length)), right: width - 20, top: 26, bottom: height - 44 };
  const last = Math.max(...drawn.map(l => l.x.at(-1)));
  const x = scale([0, last || 1], [box.left, box.right], false), y = scale([low, high], [box.bottom, box.top], state.log);
  const svg = frame(width, height, box, ticks(0, last || 1, width / 110).map(v => [v, short(v)]),
    yValues.map((v, i) => [v, texts[i]]), x, y, unit.title, titles[state.metric], `${titles[state.metric]} of ${drawn.length} runs`);
  svg.setAttribute("tabindex", "0");
  svg.append(element("clipPath", { id: "inside" }, element("rect", { x: box.left, y: box.top - 3, width: box.right - box.left + 8, height: box.bottom - box.top + 3 })));
  const path = (xs, ys) => {
    let text = "", pen = "M";
    ys.forEach((v, i) => { if (usable(v)) { text += pen + x(xs[i]).toFixed(1) + " " + y(v).toFixed(1); pen = "L"; } else pen = "M"; });
    return text;
  };
  for (const { run, x: xs, raw, y: ys, smooth } of drawn) {
    const group = element("g", { class: `curve r${run.id}`, "data-run": run.id, "clip-path": "url(#inside)" });
    if (smooth) group.append(element("path", { class: "raw", d: path(xs, raw) }));
    group.append(element("path", { class: "line", d: path(xs, ys), "stroke-dasharray": run.dash }));
    if (xs.length <= 25) ys.forEach((v, i) => { if (usable(v)) group.append(element("circle", { cx: x(xs[i]), cy: y(v), r: 3 })); });
    const end = ys.findLastIndex(usable);
    if (raw.at(-1) === null) group.append(element("path", { class: "cross", d: cross(x(xs[end]), y(ys[end])) }, element("title", {}, `${run.label} diverged`)));
    svg.append(group);
  }
  if (beyond) svg.append(element("text", { x: box.right, y: 13, "text-anchor": "end" }, `↑ beyond: up to ${short(beyond)}`));
  const rule = element("line", { class: "reading", y1: box.top, y2: box.bottom, visibility: "hidden" });
  svg.append(rule);
  host.replaceChildren(svg, tip);

  const read = at => {
    const value = Math.min(last, Math.max(0, x.back(at)));
    const rows = drawn.map(l => {
      let best = 0;
      l.x.forEach((v, i) => { if (Math.abs(v - value) < Math.abs(l.x[best] - value)) best = i; });
      return { run: l.run, x: l.x[best], y: l.y[best], far: value > l.x.at(-1) + last * 0.01 };
    }).filter(row => !row.far).sort((a, b) => (a.y ?? Infinity) - (b.y ?? Infinity));
    rule.setAttribute("x1", x(value)); rule.setAttribute("x2", x(value)); rule.setAttribute("visibility", "visible");
    tip.hidden = false;
    const near = rows.length ? rows[0].x : value;
    tip.replaceChildren(html("b", {}, unit.name === "step" ? `step ${near}` : `${short(+near.toPrecision(4))} ${unit.unit}`), ...rows.slice(0, 12).map(row =>
      html("div", { class: "r" + row.run.id }, html("i"), html("span", {}, row.run.label), html("em", {}, row.y === null ? "NaN" : short(row.y)))));
    if (rows.length > 12) tip.append(html("span", { class: "soft" }, `and ${rows.length - 12} more`));
    const left = x(value) + 14 + tip.offsetWidth > width ? x(value) - 14 - tip.offsetWidth : x(value) + 14;
    tip.style.transform = `translate(${Math.max(0, left)}px, ${box.top}px)`;
  };
  const hide = () => { tip.hidden = true; rule.setAttribute("visibility", "hidden"); };
  let at = null;
  svg.addEventListener("pointermove", event => read(at = (event.clientX - svg.getBoundingClientRect().left) * width / svg.getBoundingClientRect().width));
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", event => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    at = Math.min(box.right, Math.max(box.left, (at ?? box.left) + (event.key === "ArrowLeft" ? -1 : 1) * (box.right - box.left) / 50));
    read(at);
  });
}

function drawPlot(host, key) {
  const width = Math.max(260, host.clientWidth), height = 270;
  const dots = visible().filter(run => key.name in run.config && run.series[state.metric]).map(run => {
    const y = run.series[state.metric].y;
    return { run, value: run.config[key.name], y: y.at(-1), start: y.find(v => v !== null) ?? null };
  });
  const finite = dots.filter(d => d.y !== null);
  if (!finite.length) { host.replaceChildren(html("p", { class: "soft" }, "No run that is switched on has this metric.")); return; }
  const { low, high } = extent(finite.map(d => d.y), state.metric, dots.map(d => d.start).filter(v => v !== null), false);
  const yValues = ticks(low, high, 6), texts = yValues.map(short);
  const box = { left: 16 + 7 * Math.max(...texts.map(t => t.length)), right: width - 16, top: 30, bottom: height - 44 };
  const y = scale([low, high], [box.bottom, box.top], false);
  let x, xTicks;
  if (key.numeric) {
    const values = dots.map(d => d.value), a = Math.min(...values), b = Math.max(...values);
    x = scale(a === b ? [a - 1, a + 1] : [a, b], [box.left + 18, box.right - 12], key.log && a !== b);
    const named = new Map(dots.map(d => [d.value, d.run.text[key.name]]));
    xTicks = named.size <= 7 ? [...named] : (key.log ? logTicks(a, b) : ticks(a, b, 5)).map(v => [v, short(v)]);
    let right = -Infinity;  // names that would touch are left out
    xTicks = xTicks.sort((p, q) => p[0] - q[0]).filter(([v, t]) => {
      const half = t.length * 3.5 + 3;
      if (x(v) - half < right) return false;
      right = x(v) + half;
      return true;
    });
  } else {
    const slot = (box.right - box.left) / key.categories.length, letters = Math.max(3, Math.floor(slot / 7));
    x = value => box.left + slot * (key.categories.indexOf(value) + 0.5);
    xTicks = key.categories.map(c => [c, c.length > letters ? c.slice(0, letters - 1) + "…" : c]);
    for (const d of dots) d.value = d.run.text[key.name];
  }
  const svg = frame(width, height, box, xTicks, yValues.map((v, i) => [v, texts[i]]), x, y, key.name, "last " + titles[state.metric],
    `last ${titles[state.metric]} against ${key.name}`);
  const others = new Map();
  for (const d of finite) {
    const setting = key.numeric ? JSON.stringify(data.keys.filter(k => k.name !== key.name).map(k => d.run.text[k.name])) : d.value;
    if (!others.has(setting)) others.set(setting, new Map());
    const line = others.get(setting);
    line.set(d.value, [...(line.get(d.value) ?? []), d.y]);
  }
  if (!key.numeric || others.size <= 8) for (const line of others.values()) {
    const means = [...line].map(([v, ys]) => [v, ys.reduce((a, b) => a + b) / ys.length]);
    if (key.numeric && means.length > 1) {
      means.sort((p, q) => p[0] - q[0]);
      svg.append(element("path", { class: "mean", d: "M" + means.map(([v, m]) => `${x(v)} ${y(m)}`).join("L") }));
    } else if (!key.numeric) for (const [v, m] of means) svg.append(element("path", { class: "mean", d: `M${x(v) - 16} ${y(m)}h32` }));
  }
  for (const d of dots) {
    const group = element("g", { class: `dot r${d.run.id}`, "data-run": d.run.id });
    const title = element("title", {}, `${d.run.label}: ${d.y === null ? "NaN" : d.y}`);
    if (d.y === null || d.y > high) {
      group.append(element("path", { d: cross(x(d.value), box.top) }, title),
        element("text", { x: x(d.value) - 9, y: box.top + 4, "text-anchor": "end" }, d.y === null ? "NaN" : short(d.y)));
    } else group.append(element("circle", { cx: x(d.value), cy: y(d.y), r: 5 }, title));
    svg.append(group);
  }
  host.replaceChildren(svg);
}

function draw() {
  drawCurves();
  for (const key of data.keys) {
    const host = document.querySelector(`[data-key="${CSS.escape(key.name)}"]`);
    if (host) drawPlot(host, key);
  }
  for (const chip of $("chips").querySelectorAll("[data-run]")) chip.setAttribute("aria-pressed", !state.hidden.has(Number(chip.dataset.run)));
  for (const row of document.querySelectorAll("tr[data-run]")) row.classList.toggle("off", state.hidden.has(Number(row.dataset.run)));
  $("weight").textContent = state.weight.toFixed(2);
}

for (const metric of data.metrics) $("metric").append(html("option", { value: metric.name }, metric.title));
for (const axis of data.axes) $("axis").append(html("option", { value: axis.name }, axis.title));
$("metric").value = state.metric; $("axis").value = state.axis; $("smooth").value = state.weight;
$("metric").addEventListener("change", event => { state.metric = event.target.value; draw(); });
$("axis").addEventListener("change", event => { state.axis = event.target.value; draw(); });
$("smooth").addEventListener("input", event => { state.weight = Number(event.target.value); draw(); });
$("log").addEventListener("change", event => { state.log = event.target.checked; draw(); });
if (data.runs.length > 2) {
  for (const [text, hidden] of [["all", []], ["none", data.runs.map(run => run.id)]]) {
    const button = html("button", { type: "button", class: "all" }, text);
    button.addEventListener("click", () => { state.hidden = new Set(hidden); draw(); });
    $("chips").append(html("li", {}, button));
  }
}
for (const id of data.legend) {
  const run = data.runs[id], chip = html("button", { type: "button", "data-run": id, class: "r" + id }, swatch(run), run.label);
  chip.addEventListener("click", () => { if (!state.hidden.delete(id)) state.hidden.add(id); draw(); });
  $("chips").append(html("li", {}, chip));
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, row = head.parentElement, body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending", column = head.cellIndex;
    for (const other of row.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const numbers = head.dataset.numbers === "yes";
    const key = line => { const value = line.cells[column].dataset.value; return value === "" ? null : numbers ? Number(value) : value; };
    body.append(...[...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === null || y === null) return (x === null) - (y === null);
      return (numbers ? x - y : x.localeCompare(y, undefined, { numeric: true })) * (up ? 1 : -1);
    }));
  });
}

let width = 0;
new ResizeObserver(() => { if ($("chart").clientWidth !== width) { width = $("chart").clientWidth; draw(); } }).observe($("chart"));
