// The law explorer: one model, one budget, and where returns diminish. Its numbers are those of `scaling predict` and `scaling optimal`.

const STEP = 0.01; // of a slider, in powers of ten
const REACH = { N: 1000, D: 1000, C: 1e5 }; // sliders go so many times beyond the data, and to a tenth of it below
const VALLEY = 25; // the valley of a budget is drawn from the best size divided by this to it times this

function lawExplorer(data, root) {
  const laws = data.laws.filter((law) => law.split).map(readLaw);
  if (!laws.length) {
    root.append(make("p", { class: "note" }, "No law in N and D was fitted: there is no budget to split and no model to predict from both."));
    return;
  }
  const main = laws.find((law) => law.key === data.main) || laws[0];
  const top = ({ range }) => ({ n: round(range.N[1]), d: round(range.D[1]), c: round(range.C[1]) });
  const state = { law: main, ...top(main), served: 0, share: 0.01 };
  const one = panel("One model", "What loss does a model of N parameters reach on D tokens?");
  const many = panel("One budget", "Which model makes the best of a budget of compute?");
  const svg = make("svg", { role: "img", "aria-label": "Loss over model size at this budget, with the best size" });
  const critical = make("p", { class: "critical", "aria-live": "polite" });
  let waiting = false;
  const update = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      showModel(data, state, one);
      showBudget(data, state, many, svg);
      showCritical(state, critical);
    });
  };
  const controls = () => {
    const { range } = state.law;
    const bounds = (name) => [range[name][0] / 10, range[name][1] * REACH[name]];
    const set = (key) => (value) => {
      state[key] = value;
      update();
    };
    state.sliders = {
      n: slider("parameters N", bounds("N"), state.n, set("n"), { id: "slider-n" }),
      d: slider("training tokens D", bounds("D"), state.d, set("d"), { id: "slider-d" }),
      c: slider("compute C, FLOPs", bounds("C"), state.c, set("c"), { id: "slider-c", format: power }),
      served: slider("tokens served", [range.D[0], range.D[1] * 1e7], state.served, set("served"), { id: "slider-served", zero: "none" }),
    };
    one.controls.replaceChildren(state.sliders.n.element, state.sliders.d.element);
    many.controls.replaceChildren(state.sliders.c.element, state.sliders.served.element);
  };
  const toModel = make("button", { type: "button" }, "Look at this model");
  toModel.addEventListener("click", () => {
    state.sliders.n.set(round(state.best.n.value));
    state.sliders.d.set(round(state.best.d.value));
  });
  const toBudget = make("button", { type: "button" }, "Look at this model's compute");
  toBudget.addEventListener("click", () => state.sliders.c.set(round(6 * state.n * state.d)));
  one.foot.append(toBudget);
  many.foot.append(toModel);
  const options = laws.map((law) => [law.key, data.counts.length > 1 ? `${law.name}, N counts ${column(law.n_column)}` : law.name]);
  const pick = choice("law", options, main.key, (key) => {
    state.law = laws.find((law) => law.key === key);
    Object.assign(state, top(state.law), { served: 0 });
    controls();
    update();
  });
  const shares = main.critical.map(({ share }) => [String(share), `${short(100 * share)} %`]);
  const least = choice("A doubling of compute should take at least off the loss:", shares, "0.01", (share) => {
    state.share = Number(share);
    update();
  });
  root.append(
    make("div", { class: "controls" }, laws.length > 1 ? pick : ""),
    make("div", { class: "panels" }, one.element, many.element),
    make("div", { class: "panel wide" }, make("h3", {}, "Where returns diminish"), make("div", { class: "controls" }, least), critical),
    make("p", { class: "note" }, explanation(data)),
  );
  many.element.insertBefore(make("figure", {}, svg, make("figcaption", {}, "Every model of this budget: law, its interval, and the best one (◆)")), many.foot);
  controls();
  update();
  new ResizeObserver(update).observe(many.element);
}

const round = (x) => Number(x.toPrecision(3));

const explanation = (data) =>
  `Intervals are those of the command line below each answer; they hold if the law is true, unless said. C = 6ND${data.n_column === "params_total" ? "" : " (N as the law counts it)"}; serving adds 2N a token. Far beyond the data every number here is an extrapolation.`;

/** A part of the explorer: its controls, answer, and small print. */
function panel(title, question) {
  const controls = make("div", { class: "sliders" });
  const answer = make("div", { class: "numbers", "aria-live": "polite" });
  const note = make("p", { class: "note" });
  const command = make("code", { class: "command" });
  const foot = make("div", { class: "foot" });
  const element = make("div", { class: "panel" }, make("h3", {}, title), make("p", { class: "note" }, question), controls, answer, note, command, foot);
  return { element, controls, answer, note, command, foot };
}

/** A slider on a log scale with a field for exact numbers; with `zero`, its lowest place stands for 0. */
function slider(label, [low, high], value, changed, { id, format = si, zero = null }) {
  const [first, last] = [Math.floor(Math.log10(low) / STEP) * STEP, Math.ceil(Math.log10(high) / STEP) * STEP];
  const range = make("input", { type: "range", min: (zero ? first - STEP : first).toFixed(2), max: last.toFixed(2), step: STEP, id });
  const field = make("input", { type: "text", inputmode: "text", autocomplete: "off", spellcheck: "false", "aria-label": `${label}, exact` });
  const show = (x) => {
    range.value = x > 0 ? Math.log10(x) : first - STEP;
    range.setAttribute("aria-valuetext", x > 0 ? format(x) : zero);
    field.value = x > 0 ? flag(x) : "0";
    field.removeAttribute("aria-invalid");
  };
  const set = (x) => {
    show(x);
    changed(x);
  };
  range.addEventListener("input", () => {
    const at = Number(range.value);
    set(zero && at < first - STEP / 2 ? 0 : round(10 ** at));
  });
  field.addEventListener("change", () => {
    const x = zero && ["0", zero, ""].includes(field.value.trim()) ? 0 : parseQuantity(field.value);
    if (Number.isFinite(x)) set(x);
    else field.setAttribute("aria-invalid", "true");
  });
  show(value);
  return { element: make("div", { class: "slider" }, make("label", { for: id }, label), field, range), set };
}

/** Rows of an answer: words and unit, value, interval; every number also in full, for those who read the page by program. */
function numbers(rows, level) {
  const cells = rows.map(([name, words, unit, { value, band: [low, high] }]) =>
    make("tr", { "data-name": name, "data-value": value, "data-low": low, "data-high": high },
      make("th", { scope: "row" }, words, " ", make("span", { class: "unit" }, unit)),
      make("td", { class: "n strong" }, five(value)),
      make("td", { class: "n" }, Number.isFinite(low) ? `${five(low)} to ${five(high)}` : "none")));
  const head = ["", "estimate", `${short(100 * level)} % interval`].map((words, i) => make("th", { scope: "col", class: i ? "n" : null }, words));
  return make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...cells));
}

/** A command, broken only before its flags. */
const showCommand = (place, words) =>
  place.replaceChildren(...words.split(/ (?=--)/).flatMap((part, i) => (i ? [" ", make("span", {}, part)] : [make("span", {}, part)])));

function showModel(data, state, { answer, note, command }) {
  const { law, n, d } = state;
  const found = predict(law, n, d);
  const only = law.model ? predictModel(law.model, n, d) : null;
  const rows = [
    ["loss", "loss by the law", "nats/token", { value: found.loss, band: found.band }],
    ["run", "one new run, if the law is true", "", { value: found.loss, band: found.runs }],
  ];
  if (only) rows.push(["run-only", "one new run, if it is only a law", "", { value: only.loss, band: only.band }]);
  const [byN, byD] = gains(law, n, d);
  rows.push(["gain-n", "a doubling of N takes off", `${short(100 * byN.share)} % of it`, byN]);
  rows.push(["gain-d", "a doubling of D takes off", `${short(100 * byD.share)} % of it`, byD]);
  answer.replaceChildren(numbers(rows, law.level));
  note.textContent = `C = 6ND = ${power(6 * n * d)} FLOPs; ${short(d / n)} tokens per parameter; ${extrapolation(law.range, n, d)}.`;
  showCommand(command, `scaling predict ${data.source} --params ${flag(n)} --tokens ${flag(d)}${law.flags}`);
}

function showBudget(data, state, { answer, note, command }, svg) {
  const { law, c, served } = state;
  const best = optimum(law, c, served);
  state.best = best;
  const share = best.gain.value / best.loss.value;
  answer.replaceChildren(numbers([
    ["params", "best N", column(law.n_column), best.n],
    ["tokens", "best D", "tokens", best.d],
    ["ratio", "D / N", "", best.ratio],
    ["loss", "loss there", "nats/token", best.loss],
    ["gain", "a doubling of C takes off", Number.isFinite(share) ? `${short(100 * share)} % of it` : "", best.gain],
  ], law.level));
  const none = !Number.isFinite(best.n.value);
  note.textContent = none
    ? "This law has no best split of the budget."
    : `${served ? `C = 6ND + 2N × ${si(served)} tokens served` : "C = 6ND"}; the best model is ${extrapolation(law.range, best.n.value, best.d.value)}.`;
  showCommand(command, `scaling optimal ${data.source} --flops ${flag(c)}${served ? ` --inference-tokens ${flag(served)}` : ""}${law.flags}`);
  if (!none) drawValley(law, best, c, served, svg);
}

/** Loss of every model that a budget buys, over N. */
function drawValley(law, best, c, served, svg) {
  const rows = Object.fromEntries(Object.entries(law.rows).map(([name, v]) => [name, v.subarray(0, BAND_DRAWS + 1)]));
  const most = served ? (c / (2 * served)) * 0.98 : Infinity; // a larger model serves, but has nothing left to learn from
  const [low, high] = [best.n.value / VALLEY, Math.min(best.n.value * VALLEY, most)];
  const x = Array.from({ length: 61 }, (_, i) => low * (high / low) ** (i / 60));
  const losses = x.map((n) => lossAt(law, rows, n, (c - 2 * n * served) / (6 * n)));
  const told = losses.map((l) => band(l, law.level));
  const sure = law.draws && told.every(([a]) => Number.isFinite(a));
  const y = losses.map((l) => l[0]);
  const ends = [...y, ...(sure ? told.flat() : [])].filter((v) => v > 0);
  const [least, greatest] = [Math.min(...ends), Math.min(Math.max(...ends), 2 * Math.max(...y))];
  drawChart(svg, {
    x: { limits: [low, high], name: "parameters N", format: (v) => si(v) },
    y: { limits: [least / 1.01, greatest * 1.01], name: "loss, nats per token", format: (v) => short(v, 4) },
    bands: sure ? [{ x, low: told.map((b) => b[0]), high: told.map((b) => b[1]), color: "var(--middle)" }] : [],
    lines: [{ x, y, color: "var(--middle)" }],
    marks: Number.isFinite(best.loss.band[0]) ? [{ x: best.n.value, low: best.loss.band[0], high: best.loss.band[1], kind: "true" }] : [],
    points: [{ x: best.n.value, y: best.loss.value, diamond: true, id: "best" }],
  });
}

function showCritical({ law, c, share }, element) {
  const found = law.critical.find((point) => point.share === share);
  element.dataset.value = found.value;
  element.dataset.low = found.low;
  element.dataset.high = found.high;
  if (found.value === null) {
    element.textContent = `On this law one more doubling buys ${short(100 * share)} % of the loss always, or never.`;
    return;
  }
  const interval = found.low === null ? "" : ` (${short(100 * law.level)} % interval ${power(found.low, 3)} to ${power(found.high, 3)})`;
  const without = found.without > 0 ? `; ${short(100 * found.without, 2)} % of the draws have no such point` : "";
  const here = found.value / c;
  const place = here > 1 ? `your budget is ${si(here)} times below it` : `your budget is ${si(1 / here)} times beyond it`;
  element.textContent = `From C = ${power(found.value, 3)} FLOPs on${interval}, spent on the best model, one more doubling buys less than ${short(100 * share)} % of the loss${without}; ${place}.`;
}
