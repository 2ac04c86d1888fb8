// Tables: a click on a heading sorts, a field above long tables searches.

const LONG_TABLE = 12;

/** Number of a cell as the page writes it; NaN for words. */
const cellNumber = (words) => (words === "" ? NaN : Number(words.replaceAll(",", "")));

function sortTable(table, index) {
  const heads = [...table.tHead.rows[0].cells];
  const upward = heads[index].getAttribute("aria-sort") !== "ascending";
  heads.forEach((head, i) => (i === index ? head.setAttribute("aria-sort", upward ? "ascending" : "descending") : head.removeAttribute("aria-sort")));
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => [row.cells[index].textContent, row]);
  const numeric = keyed.every(([words]) => words === "" || !Number.isNaN(cellNumber(words)));
  const turn = upward ? 1 : -1;
  const compare = numeric ? (a, b) => cellNumber(a) - cellNumber(b) : (a, b) => a.localeCompare(b, "en", { numeric: true });
  // Empty cells come last, whichever way the rest is sorted.
  keyed.sort(([a], [b]) => (a === "") - (b === "") || (a === "" ? 0 : turn * compare(a, b)));
  body.append(...keyed.map(([, row]) => row));
}

/** Rows that hold every word of the search, in any column. */
function searchTable(table, words, told) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...table.tBodies[0].rows];
  let found = 0;
  for (const row of rows) {
    row.told ??= row.textContent.toLowerCase() + " " + [...row.cells].map((cell) => cell.textContent.toLowerCase()).join(" ");
    row.hidden = !wanted.every((word) => row.told.includes(word));
    found += !row.hidden;
  }
  told.textContent = wanted.length ? `${found} of ${rows.length} rows` : `${rows.length} rows`;
}

function liveTables(root) {
  for (const table of root.querySelectorAll("table[data-table]")) {
    [...table.tHead.rows[0].cells].forEach((head, i) => {
      const button = make("button", { type: "button", class: "sort" }, head.textContent);
      button.addEventListener("click", () => sortTable(table, i));
      head.replaceChildren(button);
    });
    if (table.tBodies[0].rows.length <= LONG_TABLE) continue;
    const told = make("span", { class: "note", role: "status" });
    const field = make("input", { type: "search", autocomplete: "off", spellcheck: "false" });
    field.addEventListener("input", () => searchTable(table, field.value, told));
    table.parentElement.before(make("div", { class: "controls search" }, make("label", { class: "choice" }, "search ", field), told));
    searchTable(table, "", told);
  }
}
