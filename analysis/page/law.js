// Laws in the browser: the same formulas on the same draws as `analysis/` evaluates, so that every number equals the command line's.
// A value is a number, or a Float64Array with the estimate first and then one entry a draw; a dual is a value v with its derivative d
// along one direction (0 where nothing moves).

const NOTHING = 1e-12; // three points of a search this near (relative) to the best one: the split does not matter
const SHARE_WITHOUT = 0.2; // with so many draws without an answer, percentiles would describe chosen draws

/** Apply f to two values, entry by entry; numbers broadcast. */
function zip(f, a, b) {
  const n = a.length === undefined ? b.length : a.length;
  if (n === undefined) return f(a, b);
  const out = new Float64Array(n);
  if (a.length === undefined) for (let i = 0; i < n; i++) out[i] = f(a, b[i]);
  else if (b.length === undefined) for (let i = 0; i < n; i++) out[i] = f(a[i], b);
  else for (let i = 0; i < n; i++) out[i] = f(a[i], b[i]);
  return out;
}

const map = (f, a) => (a.length === undefined ? f(a) : Float64Array.from(a, f));
const add = (a, b) => zip((x, y) => x + y, a, b);
const sub = (a, b) => zip((x, y) => x - y, a, b);
const mul = (a, b) => zip((x, y) => x * y, a, b);
const div = (a, b) => zip((x, y) => x / y, a, b);
const pow = (a, b) => zip(Math.pow, a, b);
const still = (v) => ({ v, d: 0 });
const moves = (u) => u.d !== 0;

const RULES = {
  "+": (u, w) => ({ v: add(u.v, w.v), d: moves(u) || moves(w) ? add(u.d, w.d) : 0 }),
  "-": (u, w) => ({ v: sub(u.v, w.v), d: moves(u) || moves(w) ? sub(u.d, w.d) : 0 }),
  "*": (u, w) => ({ v: mul(u.v, w.v), d: moves(u) || moves(w) ? add(mul(u.d, w.v), mul(u.v, w.d)) : 0 }),
  "/": (u, w) => ({ v: div(u.v, w.v), d: moves(u) || moves(w) ? div(sub(u.d, mul(div(u.v, w.v), w.d)), w.v) : 0 }),
  "^": (u, w) => {
    if (moves(w)) return RULES.exp(RULES["*"](w, RULES.log(u)));
    return { v: pow(u.v, w.v), d: moves(u) ? mul(mul(w.v, pow(u.v, sub(w.v, 1))), u.d) : 0 };
  },
  neg: (u) => ({ v: map((x) => -x, u.v), d: moves(u) ? map((x) => -x, u.d) : 0 }),
  exp: (u) => {
    const v = map(Math.exp, u.v);
    return { v, d: moves(u) ? mul(v, u.d) : 0 };
  },
  log: (u) => ({ v: map(Math.log, u.v), d: moves(u) ? div(u.d, u.v) : 0 }),
  sqrt: (u) => {
    const v = map(Math.sqrt, u.v);
    return { v, d: moves(u) ? div(u.d, mul(2, v)) : 0 };
  },
  min: (u, w) => choose(u, w, (x, y) => x <= y),
  max: (u, w) => choose(u, w, (x, y) => x >= y),
};

function choose(u, w, first) {
  const left = zip((x, y) => (first(x, y) ? 1 : 0), u.v, w.v);
  const pick = (a, b) => add(mul(left, a), mul(sub(1, left), b));
  return { v: zip((x, y) => (first(x, y) ? x : y), u.v, w.v), d: moves(u) || moves(w) ? pick(u.d, w.d) : 0 };
}

/** Value and derivative of a formula, given a dual for every name. A formula is a list of [name, tree]; the last is the loss. */
function evaluate(formula, known) {
  const names = { ...known };
  const walk = (tree) => {
    if (typeof tree === "number") return still(tree);
    if (typeof tree === "string") return names[tree];
    return RULES[tree[0]](...tree.slice(1).map(walk));
  };
  let last = still(NaN);
  for (const [name, tree] of formula) last = names[name] = walk(tree);
  return last;
}

/** Little-endian float64 numbers in base64. */
function floats(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float64Array.from({ length: bytes.length / 8 }, (_, i) => view.getFloat64(8 * i, true));
}

/** A law as the page carries it -> the same with its parameters as values: the estimate, then the draws. */
function readLaw(law) {
  const rows = {};
  for (const name of law.parameters) {
    const draws = law.draws ? floats(law.draws[name]) : new Float64Array(0);
    rows[name] = new Float64Array(draws.length + 1);
    rows[name][0] = law.params[name];
    rows[name].set(draws, 1);
  }
  return { ...law, rows, one: law.params, z: law.z ? floats(law.z) : null };
}

/** Every variable of a law at N and D: C is 6ND, U is D (one epoch). */
const variables = (n, d) => ({ N: still(n), D: still(d), C: still(mul(6, mul(n, d))), U: still(d) });

const stillAll = (rows) => Object.fromEntries(Object.entries(rows).map(([name, value]) => [name, still(value)]));

/** Loss, nats per token, at N and D (numbers or values). */
const lossAt = (law, rows, n, d) => evaluate(law.tree, { ...stillAll(rows), ...variables(n, d) }).v;

/** N and D of least loss under 6ND + 2N served = flops (Hoffmann et al. 2022, eq. 4; Sardana et al. 2023). */
function splitBudget(law, rows, flops, served) {
  if (law.split.powers && served === 0) return closedForm(law.split.powers, rows, flops);
  const ratios = law.logRatios;
  const fixed = stillAll(rows);
  const grid = ratios.map((t) => {
    const at = atRatio(t, flops, served);
    return evaluate(law.split.tree, { ...fixed, ...variables(at.n, at.d) }).v;
  });
  const [low, high] = [new Float64Array(grid[0].length), new Float64Array(grid[0].length)];
  for (let i = 0; i < low.length; i++) {
    const loss = grid.map((g) => g[i]);
    let best = -1;
    for (let k = 1; k < loss.length - 1; k++) {
      const dips = Number.isFinite(loss[k]) && loss[k] < loss[k - 1] && loss[k] <= loss[k + 1];
      if (dips && (best < 0 || loss[k] < loss[best])) best = k;
    }
    const flat = best >= 0 && loss.filter((x) => Math.abs(x - loss[best]) <= NOTHING * Math.abs(loss[best])).length >= 3;
    [low[i], high[i]] = best < 0 || flat ? [NaN, NaN] : [ratios[best - 1], ratios[best + 1]];
  }
  const slope = (t) => {
    const at = atRatio(t, flops, served);
    const moving = { N: { v: at.n, d: mul(at.n, map((s) => -s, at.share)) }, D: { v: at.d, d: mul(at.d, sub(1, at.share)) } };
    const compute = RULES["*"](still(6), RULES["*"](moving.N, moving.D));
    return evaluate(law.split.tree, { ...fixed, ...moving, C: compute, U: moving.D }).d;
  };
  const [first, last] = [slope(low), slope(high)];
  for (let i = 0; i < low.length; i++) if (first[i] * last[i] > 0) low[i] = NaN; // no root between them
  for (let step = 0; step < 45; step++) {
    const middle = low.map((x, i) => (x + high[i]) / 2);
    slope(middle).forEach((rises, i) => (rises > 0 ? (high[i] = middle[i]) : (low[i] = middle[i])));
  }
  return atRatio(low.map((x, i) => (x + high[i]) / 2), flops, served);
}

function closedForm(powers, rows, flops) {
  const [a, alpha] = powers.N.map((name) => rows[name]);
  const [b, beta] = powers.D.map((name) => rows[name]);
  const level = sub(map(Math.log, mul(alpha, a)), map(Math.log, mul(beta, b)));
  const n = map(Math.exp, div(add(level, mul(beta, Math.log(flops / 6))), add(alpha, beta)));
  return { n, d: div(flops / 6, n) };
}

/** N, D and -dlog N/dlog(D/N) at log D/N on the budget. */
function atRatio(logRatio, flops, served) {
  const ratio = map(Math.exp, logRatio);
  const root = map(Math.sqrt, add(served * served, mul(6 * flops, ratio)));
  const n = div(flops, add(served, root));
  return { n, d: mul(ratio, n), share: sub(0.5, div(served / 2, root)) };
}

/** Percentile interval of the draws (entries after the first): Hyndman and Fan's definition 6, as `analysis.sampling.percentile_band`. */
function band(values, level) {
  const draws = values.length === undefined ? new Float64Array(0) : values.subarray(1);
  const finite = draws.filter(Number.isFinite);
  if (!draws.length || 1 - finite.length / draws.length >= SHARE_WITHOUT) return [NaN, NaN];
  finite.sort();
  return [(1 - level) / 2, (1 + level) / 2].map((q) => {
    const at = Math.min(Math.max(q * (finite.length + 1) - 1, 0), finite.length - 1);
    const [i, t] = [Math.floor(at), at - Math.floor(at)];
    const [x, y] = [finite[i], finite[Math.min(i + 1, finite.length - 1)]];
    return t >= 0.5 ? y - (y - x) * (1 - t) : x + (y - x) * t;
  });
}

/** Relative sd of one new run about the law: noise between seeds (that of the nearest data, outside them) and misfit. */
function runSd(noise, n, d) {
  const clip = (x, [low, high]) => Math.min(Math.max(x, low), high);
  const logN = clip(Math.log(n), noise.followed_n) - noise.log_n;
  const logD = clip(Math.log(d), noise.followed_d) - noise.log_d;
  return Math.hypot(Math.max(Math.exp(noise.log_sd + noise.slope_n * logN + noise.slope_d * logD), noise.floor), noise.misfit_sd);
}

/** Loss at N and D with its intervals: of the law, and of one new run if the law is true. */
function predict(law, n, d) {
  const losses = lossAt(law, law.rows, n, d);
  const sd = runSd(law.noise, n, d);
  const runs = law.z ? losses.map((x, i) => (i ? x * Math.exp(sd * law.z[i - 1]) : x)) : losses;
  return { loss: losses[0], band: band(losses, law.level), runs: band(runs, law.level) };
}

/** One new run if the law is only a law: the Skaling form, a process for what it leaves, and a width learnt from rolling origins. */
function predictModel(model, n, d) {
  const [x, y] = [Math.log(n), Math.log(d)];
  const [lx, ly] = [x - model.center[0], y - model.center[1]];
  const [a, b, e] = model.theta;
  const [alpha, beta, k] = model.theta.slice(3).map(Math.exp);
  const logSum = (p, q) => Math.max(p, q) + Math.log1p(Math.exp(-Math.abs(p - q)));
  const [byN, byD] = [a - alpha * lx, b - beta * ly];
  const inner = logSum(byN, byD);
  const value = logSum(k * inner, e);
  const reducible = k * Math.exp(k * inner - value);
  const toN = reducible * Math.exp(byN - inner);
  const toD = reducible - toN;
  const slope = [toN, toD, Math.exp(e - value), -alpha * lx * toN, -beta * ly * toD, reducible * inner];
  const variance = slope.reduce((sum, s, i) => sum + s * slope.reduce((row, t, j) => row + model.covariance[i][j] * t, 0), 0);
  const at = [(x + y) / model.scales[0], (y - x) / model.scales[1]];
  let mean = value + model.center[2];
  model.at.forEach(([u, w], i) => {
    mean += model.weights[i] * Math.exp(-0.5 * (((at[0] - u) / model.length) ** 2 + ((at[1] - w) / model.across) ** 2));
  });
  const gap = Math.max(x + y + model.offset - model.dearest, 0);
  const fall = model.improvement * Math.abs(model.best - mean);
  const half = model.width * Math.sqrt(model.sd ** 2 + Math.max(variance, 0) + model.tau2 * gap + fall ** 2 + model.origins);
  return { loss: Math.exp(mean), band: [Math.exp(mean - half), Math.exp(mean + half)] };
}

/** What a budget buys: N, D, D/N and loss with intervals, and what the next doubling of the budget takes off the loss. */
function optimum(law, flops, served) {
  const [here, there] = [flops, 2 * flops].map((c) => splitBudget(law, law.rows, c, served));
  const [loss, next] = [here, there].map((at) => lossAt(law, law.rows, at.n, at.d));
  const told = (values) => ({ value: values[0], band: band(values, law.level) });
  return { n: told(here.n), d: told(here.d), ratio: told(div(here.d, here.n)), loss: told(loss), gain: told(sub(loss, next)) };
}

/** What a doubling of N, and one of D, takes off the loss at N and D. */
function gains(law, n, d) {
  const here = lossAt(law, law.rows, n, d);
  return [[2 * n, d], [n, 2 * d]].map(([m, t]) => {
    const gain = sub(here, lossAt(law, law.rows, m, t));
    return { value: gain[0], band: band(gain, law.level), share: gain[0] / here[0] };
  });
}

/** How far outside the fitted runs a place lies, in the words of the command line. */
function extrapolation(range, n, d) {
  const [above, below] = [[], []];
  for (const [name, value] of [["N", n], ["D", d], ["C", 6 * n * d]]) {
    const [low, high] = range[name];
    if (value > high * 1.001) above.push(`${name} x${short(value / high, 3)}`);
    else if (value < low / 1.001) below.push(`${name} x${short(low / value, 3)}`);
  }
  const parts = [[above, "beyond"], [below, "below"]].filter(([f]) => f.length).map(([f, word]) => `${f.join(", ")} ${word} the data`);
  return parts.join("; ") || "inside the data";
}
