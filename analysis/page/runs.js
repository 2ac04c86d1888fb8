// The interactive plot: every run, the law at each level, its band; hover, touch or step through runs with the arrow keys.

const LEVELS = 6; // laws are drawn at so many levels of the other quantity
const BAND_DRAWS = 200;
const NARROW = 560; // pixels; on a narrower plot a run is told of below it
const GREEK = { alpha: "α", beta: "β", gamma: "γ" };

function runsPlot(data, root) {
  const laws = Object.fromEntries(data.laws.map((law) => [law.key, readLaw(law)]));
  const names = [...new Set(data.laws.map((law) => law.name))];
  const main = laws[data.main] || Object.values(laws)[0];
  const state = { axis: "N", law: main ? main.name : "", count: data.n_column, compute: "6ND", selected: -1, places: [] };
  const svg = make("svg", { tabindex: 0, role: "application", "aria-roledescription": "plot", "aria-label": "Loss of every run, and the law. Left and right arrow keys step through the runs." });
  const tip = make("div", { class: "tip", hidden: "" });
  const said = make("p", { class: "sr", "aria-live": "polite" });
  const note = make("p", { class: "note" });
  const same = data.config.filter((name) => !varying(data).includes(name)).map((name) => `${name} ${setting(data.runs[name][0])}`);
  const common = same.length > 0 && data.runs.run_id.length > 1 ? make("p", { class: "note" }, `The same in all runs: ${same.join(", ")}.`) : "";
  const redraw = () => draw(data, laws, state, svg, note, tip);
  const set = (key) => (value) => {
    state[key] = value;
    redraw();
  };
  const counts = data.counts.map((name) => [name, column(name)]);
  const controls = [choice("along", [["N", "parameters N"], ["D", "training tokens D"], ["C", "training compute C"]], state.axis, set("axis"))];
  if (names.length) controls.push(choice("law", [...names.map((n) => [n, n]), ["", "none"]], state.law, set("law")));
  if (counts.length > 1) controls.push(choice("N counts", counts, state.count, set("count")));
  if (data.c_column !== "flops_6nd") controls.push(choice("C is", [["6ND", "6ND"], ["recorded", `as recorded (${data.c_column})`]], state.compute, set("compute")));
  root.append(make("div", { class: "controls" }, ...controls), make("div", { class: "plot" }, svg, tip), said, note, common);
  const select = (i, speak) => {
    state.selected = i;
    show(data, laws, state, svg, tip);
    if (speak && i >= 0) said.textContent = tip.textContent;
  };
  const nearest = (event, reach) => {
    const box = svg.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let [best, least] = [-1, reach * reach];
    state.places.forEach((p, i) => {
      const distance = (p.x - x) ** 2 + (p.y - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    });
    return best;
  };
  svg.addEventListener("pointermove", (event) => event.pointerType !== "touch" && select(nearest(event, 30), false));
  svg.addEventListener("pointerdown", (event) => select(nearest(event, 40), true));
  svg.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && select(-1, false));
  svg.addEventListener("blur", () => select(-1, false));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") select(-1, false);
    if (step === undefined) return;
    event.preventDefault();
    const order = state.order;
    const now = order.indexOf(state.selected);
    const next = step === -Infinity ? 0 : step === Infinity ? order.length - 1 : now < 0 ? 0 : (now + step + order.length) % order.length;
    select(order[next], true);
  });
  new ResizeObserver(redraw).observe(svg);
}

/** N, D, compute and loss of every run under the chosen counts. */
function quantities(data, state) {
  const n = state.count === data.n_column ? data.runs.N : data.runs[state.count];
  const compute = data.runs.C.map((c, i) => (state.compute === "6ND" ? 6 * n[i] * data.runs.D[i] : c));
  return { N: n, D: data.runs.D, C: compute, loss: data.runs.loss };
}

/** The law as it is counted now; null where it was not fitted under this count. */
const chosen = (laws, state) => laws[`${state.law}|${state.count}`] || null;

function draw(data, laws, state, svg, note, tip) {
  const q = quantities(data, state);
  const other = state.axis === "N" ? "D" : "N";
  const law = chosen(laws, state);
  const [lowest, highest] = [Math.min(...q[other]), Math.max(...q[other])];
  const color = (v) => levelColor(highest > lowest ? Math.log(v / lowest) / Math.log(highest / lowest) : 0.4);
  const xs = q[state.axis];
  const limits = [Math.min(...xs) / 1.15, Math.max(...xs) * 1.15];
  const words = { N: `parameters N (${column(state.count)})`, D: "training tokens D", C: state.compute === "6ND" ? "training compute C = 6ND, FLOPs" : `training compute C (${data.c_column}), FLOPs` };
  const spec = { x: { limits, name: words[state.axis], format: state.axis === "C" ? (v) => power(v, 2) : (v) => si(v, 3) }, bands: [], lines: [], labels: [], marks: [] };
  const curves = law ? lawCurves(data, state, law, q, limits) : [];
  for (const c of curves) {
    const shade = c.level === null ? "var(--ink)" : color(c.level);
    if (c.low) spec.bands.push({ x: c.x, low: c.low, high: c.high, color: shade });
    spec.lines.push({ x: c.x, y: c.loss, color: shade, dashed: true }, { x: c.inside.map((i) => c.x[i]), y: c.inside.map((i) => c.loss[i]), color: shade });
    if (c.level !== null) spec.labels.push({ y: c.loss[c.loss.length - 1], text: si(c.level), color: shade });
  }
  spec.header = spec.labels.length ? `${other} =` : "";
  spec.points = q.loss.map((loss, i) => ({ x: xs[i], y: loss, color: data.runs.role[i] === "holdout" ? null : color(q[other][i]), held: data.runs.role[i] === "holdout", id: data.runs.run_id[i] }));
  for (const f of data.forecasts) {
    const at = data.runs.run_id.indexOf(f.run_id);
    if (at < 0) continue;
    if (f.pi_model_low !== null) spec.marks.push({ x: xs[at], low: f.pi_model_low, high: f.pi_model_high, kind: "only" });
    if (f.pi_low !== null) spec.marks.push({ x: xs[at], low: f.pi_low, high: f.pi_high, kind: "true" });
  }
  const losses = [...q.loss, ...spec.marks.flatMap((m) => [m.low, m.high]), ...curves.flatMap((c) => [c.loss[c.loss.length - 1]])].filter((v) => v > 0);
  const pad = (Math.max(...losses) / Math.min(...losses)) ** 0.05;
  spec.y = { limits: [Math.min(...losses) / pad, Math.max(...losses) * pad], name: "held-out loss, nats per token", format: (v) => short(v, 4) };
  state.places = drawChart(svg, spec);
  state.order = xs.map((_, i) => i).sort((a, b) => xs[a] - xs[b] || q.loss[a] - q.loss[b]);
  state.selected = -1;
  tip.hidden = true;
  note.textContent = lawNote(data, state, law, curves);
}

function lawNote(data, state, law, curves) {
  const some = data.fitted < data.all ? ` (${data.fitted} of them shown)` : "";
  const runs = `${data.all} runs fitted${some}, every seed a point${data.forecasts.length ? "; star: hold-out, bars: its forecast (thin: if the law is true, broad: if it is only a law)" : ""}.`;
  if (!state.law) return runs;
  if (!law) return `${state.law} was not fitted with N counted as ${column(state.count)}. ${runs}`;
  const shown = law.parameters.map((name) => `${GREEK[name] || name} = ${short(law.params[name])}`).join(", ");
  const band = law.draws ? ` Bands: ${100 * law.level} % intervals, if the law is true.` : "";
  const drawn = curves.length ? `${band} Dashed: beyond the data.` : ` It is in ${law.variables.join(" and ")}: no line along this axis.`;
  return `${law.name}: ${shown} (fit ${law.status}; N counts ${column(law.n_column)}).${drawn} ${runs}`;
}

/** The law along the axis: at each level of the other quantity, or along the compute-optimal frontier. */
function lawCurves(data, state, law, q, limits) {
  const grid = Array.from({ length: 49 }, (_, i) => limits[0] * (limits[1] / limits[0]) ** (i / 48));
  const fitted = q[state.axis].slice(0, data.fitted);
  const [first, last] = [Math.min(...fitted), Math.max(...fitted)];
  const x = [...grid, first, last].sort((a, b) => a - b);
  const inside = x.map((_, i) => i).filter((i) => x[i] >= first * (1 - 1e-9) && x[i] <= last * (1 + 1e-9));
  const rows = Object.fromEntries(Object.entries(law.rows).map(([name, v]) => [name, v.subarray(0, BAND_DRAWS + 1)]));
  const along = (level, losses) => {
    const told = losses.map((l) => band(l, law.level));
    const sure = law.draws && told.every(([a]) => Number.isFinite(a));
    return { x, inside, level, loss: losses.map((l) => l[0]), low: sure ? told.map((b) => b[0]) : null, high: sure ? told.map((b) => b[1]) : null };
  };
  const whole = (v) => (v.length === undefined ? new Float64Array(rows[law.parameters[0]].length).fill(v) : v);
  const two = law.variables.includes("N") && law.variables.includes("D");
  if (state.axis === "C") {
    if (law.variables.join() === "C") return state.compute === "6ND" && data.c_column !== "flops_6nd" ? [] : [along(null, x.map((c) => whole(evaluate(law.tree, { ...stillAll(rows), C: still(c) }).v)))];
    if (!two || state.compute !== "6ND") return [];
    return [along(null, x.map((c) => {
      const at = splitBudget({ ...law, rows }, rows, c, 0);
      return whole(lossAt(law, rows, at.n, at.d));
    }))];
  }
  if (!law.variables.includes(state.axis)) return [];
  const other = state.axis === "N" ? "D" : "N";
  if (!two) return [along(null, x.map((v) => whole(lossAt(law, rows, v, v))))];
  return levelsOf(q[other]).map((level) => along(level, x.map((v) => whole(state.axis === "N" ? lossAt(law, rows, v, level) : lossAt(law, rows, level, v)))));
}

/** The values at which a law is drawn: the data's own where they are few, else spread evenly. */
function levelsOf(values) {
  const found = [...new Set(values)].sort((a, b) => a - b).filter((v, i, all) => i === 0 || v > 1.02 * all[i - 1]);
  if (found.length <= LEVELS) return found;
  return Array.from({ length: LEVELS }, (_, i) => found[Math.round((i * (found.length - 1)) / (LEVELS - 1))]);
}

/** Names of the configuration that differ between runs; the rest is said once, under the plot. */
const varying = (data) => data.config.filter((name) => new Set(data.runs[name]).size > 1);

const setting = (value) => (typeof value === "number" ? si(value, 4) : String(value));

/** Show the selected run: where it is, what it was, how it learnt. */
function show(data, laws, state, svg, tip) {
  svg.querySelectorAll(".chosen").forEach((e) => e.classList.remove("chosen"));
  tip.hidden = state.selected < 0;
  if (tip.hidden) return;
  const i = state.selected;
  const id = data.runs.run_id[i];
  svg.querySelectorAll(".run")[i].classList.add("chosen");
  const q = quantities(data, state);
  const law = chosen(laws, state);
  const two = law && ["N", "D"].every((name) => law.variables.includes(name));
  const off = two ? 100 * (q.loss[i] / lossAt(law, law.one, q.N[i], q.D[i]) - 1) : NaN;
  const facts = [["loss", short(q.loss[i], 5)], ["N", si(q.N[i])], ["D", si(q.D[i])], ["C", power(q.C[i])]];
  if (Number.isFinite(off)) facts.push(["against the law", `${off >= 0 ? "+" : "−"}${Math.abs(off).toFixed(2)} %`]);
  const more = varying(data).filter((name) => data.runs[name][i] !== null && data.runs[name][i] !== "");
  const cells = [...facts, ...more.map((name) => [name, setting(data.runs[name][i])])];
  const held = data.runs.role[i] === "holdout" ? " (hold-out)" : "";
  const curve = data.curves[id];
  tip.replaceChildren(
    make("strong", {}, id + held),
    curve ? make("figure", {}, sparkline(...curve), make("figcaption", {}, `train loss ${short(curve[1][0])} to ${short(curve[1].at(-1))} over ${si(curve[0].at(-1))} tokens`)) : "",
    make("dl", {}, ...cells.flatMap(([name, value]) => [make("dt", {}, `${name} `), make("dd", {}, `${value} `)])),
  );
  const place = state.places[i];
  const width = svg.clientWidth;
  const [left, top] = width < NARROW ? [0, svg.clientHeight] : [place.x < width / 2 ? place.x + 14 : place.x - tip.offsetWidth - 14, place.y - tip.offsetHeight / 2];
  tip.style.left = `${Math.min(Math.max(left, 0), Math.max(width - tip.offsetWidth, 0))}px`;
  tip.style.top = `${Math.max(top, 0)}px`;
}
