// Drawing on logarithmic axes: bands, lines, points and direct labels, in SVG, in the colours of the page.

const ROOM = { left: 56, right: 62, top: 26, bottom: 44 };

/** Round values between two limits: at most so many. */
function logTicks(low, high, most) {
  const ladders = [[1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9], [1, 1.5, 2, 3, 4, 6, 8], [1, 2, 3, 5], [1, 2, 5], [1, 3], [1]];
  let ticks = [];
  for (const ladder of ladders) {
    ticks = [];
    for (let e = Math.floor(Math.log10(low)) - 1; e <= Math.ceil(Math.log10(high)); e++) {
      for (const f of ladder) if (f * 10 ** e >= low * (1 - 1e-9) && f * 10 ** e <= high * (1 + 1e-9)) ticks.push(f * 10 ** e);
    }
    if (ticks.length <= most) break;
  }
  while (ticks.length > most) ticks = ticks.filter((_, i) => i % 2 === 0);
  if (ticks.length >= 2) return ticks;
  const step = (high - low) / 4; // a narrow range has no round powers: even steps
  const size = 10 ** Math.floor(Math.log10(step));
  const even = [1, 2, 5, 10].map((f) => f * size).find((s) => s >= step);
  for (ticks = [], low = Math.ceil(low / even) * even; low <= high; low += even) ticks.push(low);
  return ticks;
}

/** Colour of a level between the least (0) and the greatest (1). */
const levelColor = (share) =>
  share < 0.5
    ? `color-mix(in oklab, var(--low), var(--middle) ${Math.round(200 * share)}%)`
    : `color-mix(in oklab, var(--middle), var(--high) ${Math.round(200 * share - 100)}%)`;

/** Move heights apart so that neighbours are `gap` apart. */
function spreadOut(heights, gap, low, high) {
  const order = heights.map((y, i) => [y, i]).sort((a, b) => a[0] - b[0]);
  for (let round = 0; round < 60; round++) {
    for (let k = 1; k < order.length; k++) {
      const short = gap - (order[k][0] - order[k - 1][0]);
      if (short > 0) [order[k - 1][0], order[k][0]] = [order[k - 1][0] - short / 2, order[k][0] + short / 2];
    }
    for (const item of order) item[0] = Math.min(Math.max(item[0], low), high);
  }
  const out = [];
  for (const [y, i] of order) out[i] = y;
  return out;
}

/**
 * Draw on an <svg>: x and y are {limits, name, format}; bands, lines, points and stars carry colours; labels stand at the right.
 * Returns the places of the points in pixels.
 */
function drawChart(svg, { x, y, bands = [], lines = [], points = [], marks = [], labels = [], header = "" }) {
  const width = Math.max(svg.clientWidth || 640, 280);
  const height = Math.round(Math.min(Math.max(width * 0.58, 250), 460));
  const right = width - (labels.length ? ROOM.right : 14);
  const bottom = height - ROOM.bottom;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  const scale = ([low, high], from, to) => (v) => from + ((Math.log(v) - Math.log(low)) / (Math.log(high) - Math.log(low))) * (to - from);
  const [px, py] = [scale(x.limits, ROOM.left, right), scale(y.limits, bottom, ROOM.top)];
  const at = (v) => v.toFixed(1);
  const path = (xs, ys) => xs.map((v, i) => [v, ys[i]]).filter(([, w]) => w > 0 && Number.isFinite(w)).map(([v, w], i) => `${i ? "L" : "M"}${at(px(v))} ${at(py(w))}`).join("");
  const grid = make("g", { class: "grid" });
  for (const tick of logTicks(...y.limits, 6)) {
    grid.append(make("line", { x1: ROOM.left, x2: right, y1: at(py(tick)), y2: at(py(tick)) }));
    grid.append(make("text", { x: ROOM.left - 7, y: at(py(tick) + 4), "text-anchor": "end" }, y.format(tick)));
  }
  for (const tick of logTicks(...x.limits, width < 480 ? 4 : 7)) {
    grid.append(make("line", { x1: at(px(tick)), x2: at(px(tick)), y1: ROOM.top, y2: bottom }));
    grid.append(make("text", { x: at(px(tick)), y: bottom + 17, "text-anchor": "middle" }, x.format(tick)));
  }
  grid.append(make("text", { class: "name", x: (ROOM.left + right) / 2, y: height - 8, "text-anchor": "middle" }, x.name));
  grid.append(make("text", { class: "name", x: 4, y: 14 }, y.name));
  const id = (svg.dataset.clip ??= `clip-${document.querySelectorAll("clipPath").length}`);
  const frame = { x: ROOM.left, y: ROOM.top - 4, width: right - ROOM.left, height: bottom - ROOM.top + 8 };
  const clip = make("clipPath", { id }, make("rect", frame));
  const inside = make("g", { "clip-path": `url(#${id})` });
  for (const b of bands) {
    const ring = [...b.x.map((v, i) => [v, b.low[i]]), ...b.x.map((v, i) => [v, b.high[i]]).reverse()].filter(([, w]) => w > 0);
    inside.append(make("polygon", { points: ring.map(([v, w]) => `${at(px(v))},${at(py(w))}`).join(" "), style: `fill:${b.color}`, class: "band" }));
  }
  for (const l of lines) {
    inside.append(make("path", { d: path(l.x, l.y), style: `stroke:${l.color}`, class: l.dashed ? "law beyond" : "law" }));
  }
  const places = points.map((p) => ({ x: px(p.x), y: py(p.y) }));
  const radius = points.length > 120 ? 3 : 4.5;
  points.forEach((p, i) => {
    const { tag, ...attributes } = shapeOf(p, places[i].x, places[i].y, radius);
    inside.append(make(tag, { ...attributes, class: p.held || p.diamond ? "run held" : "run", style: p.color ? `fill:${p.color}` : null, "data-run": p.id }));
  });
  for (const m of marks) {
    const [mx, low, high] = [at(px(m.x)), at(py(m.low)), at(py(m.high))];
    inside.append(make("line", { x1: mx, x2: mx, y1: low, y2: high, class: `interval ${m.kind}` }));
  }
  const side = make("g", { class: "labels" });
  const heights = spreadOut(labels.map((l) => py(l.y)), 15, ROOM.top + 8, bottom);
  labels.forEach((l, i) => side.append(make("text", { x: right + 7, y: at(heights[i] + 4), style: `fill:${l.color}` }, l.text)));
  if (header) side.append(make("text", { x: right + 7, y: at(Math.min(...heights) - 12), class: "name" }, header));
  svg.replaceChildren(clip, grid, inside, side);
  return places;
}

/** A run is a circle, a hold-out a star, an optimum a diamond. */
function shapeOf(point, x, y, radius) {
  if (point.held) return star(x, y);
  if (point.diamond) return { tag: "polygon", points: [[0, -8], [6, 0], [0, 8], [-6, 0]].map(([a, b]) => `${(x + a).toFixed(1)},${(y + b).toFixed(1)}`).join(" ") };
  return { tag: "circle", cx: x.toFixed(1), cy: y.toFixed(1), r: radius };
}

function star(x, y) {
  const corner = (i) => [x + (i % 2 ? 3.2 : 8) * Math.sin((Math.PI * i) / 5), y - (i % 2 ? 3.2 : 8) * Math.cos((Math.PI * i) / 5)];
  return { tag: "polygon", points: Array.from({ length: 10 }, (_, i) => corner(i).map((v) => v.toFixed(1)).join(",")).join(" ") };
}

/** A small curve without axes: losses over tokens on log axes. */
function sparkline(xs, ys, width = 200, height = 56) {
  const logs = (values) => values.map(Math.log);
  const span = (values, to) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return values.map((v) => (high > low ? ((v - low) / (high - low)) * to : to / 2));
  };
  const [h, v] = [span(logs(xs), width - 4), span(logs(ys), height - 4)];
  const line = h.map((a, i) => `${(a + 2).toFixed(1)},${(height - 2 - v[i]).toFixed(1)}`).join(" ");
  return make("svg", { class: "spark", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, make("polyline", { points: line }));
}
