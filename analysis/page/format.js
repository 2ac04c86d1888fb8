// Numbers and small pieces of the page. Text of the data goes in by textContent only, never as markup.

const SUFFIXES = [[1e15, "P"], [1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];
const UNITS = Object.fromEntries(SUFFIXES.map(([unit, suffix]) => [suffix, unit]));

/** 1234.5 -> "1230": so many significant digits, without trailing zeros. */
const short = (x, digits = 3) => (Number.isFinite(x) ? String(Number(x.toPrecision(digits))) : "–");

/** 20000 -> "20k", 1.5e9 -> "1.5B": as the sweep files write quantities. */
function si(x, digits = 3) {
  const found = SUFFIXES.find(([unit]) => Math.abs(x) >= 0.9995 * unit);
  return found && Math.abs(x) < 1e18 ? short(x / found[0], digits) + found[1] : short(x, digits).replace("e+", "e");
}

/** A number as a flag of the command line takes it, exactly: 20000 -> "20k", 12345 -> "12345". */
const flag = (x) => (Number(x.toPrecision(3)) === x && x >= 1 && x < 1e15 ? si(x) : String(x).replace("e+", "e"));

/** Five digits, as the command line prints them. */
const five = (x) => (Number.isFinite(x) ? (x >= 1e5 || x < 1e-3 ? (x >= 1e3 && x < 1e15 ? si(x, 5) : power(x, 5)) : short(x, 5)) : "–");

/** 3.2e12 -> "3.2×10¹²". */
function power(x, digits = 3) {
  if (!Number.isFinite(x) || x <= 0) return "–";
  let exponent = Math.floor(Math.log10(x) + 1e-12);
  let factor = Number((x / 10 ** exponent).toPrecision(digits));
  if (factor >= 10) [factor, exponent] = [factor / 10, exponent + 1];
  const raised = [...String(exponent)].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");
  return factor === 1 ? `10${raised}` : `${factor}×10${raised}`;
}

/** "20M", "1.5e9", "1,000" -> number above 0; NaN for anything else. */
function parseQuantity(text) {
  const match = /^\s*(\d+(?:\.\d*)?|\.\d+)(e[+-]?\d+)?\s*([kKMBGTP]?)\s*$/i.exec(String(text).replaceAll(",", ""));
  if (!match) return NaN;
  const suffix = match[3] === "K" ? "k" : match[3] === "G" ? "B" : match[3].length && !UNITS[match[3]] ? match[3].toUpperCase() : match[3];
  const value = Number(match[1] + (match[2] || "")) * (UNITS[suffix] || 1);
  return value > 0 && value < 1e300 ? value : NaN;
}

/** Make an element: attributes, then children (elements or texts). */
function make(tag, attributes = {}, ...children) {
  const svg = SVG_TAGS.has(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== undefined) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
const SVG_TAGS = new Set(["svg", "g", "path", "circle", "line", "text", "rect", "polyline", "polygon", "clipPath"]);

/** A labelled choice among options [value, words]; `changed` gets the value. */
function choice(label, options, value, changed) {
  const list = options.map(([key, words]) => make("option", key === value ? { value: key, selected: "" } : { value: key }, words));
  const select = make("select", {}, ...list);
  select.addEventListener("change", () => changed(select.value));
  return make("label", { class: "choice" }, label + " ", select);
}

const column = (name) => ({ params_non_embedding: "non-embedding parameters", params_total: "all parameters" })[name] || name;
