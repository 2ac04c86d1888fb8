// The page: theme, printing, and each living part in its place.

function themeButton(place) {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const now = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const button = make("button", { type: "button" });
  const name = () => {
    const next = now() === "dark" ? "light" : "dark";
    button.textContent = next === "dark" ? "☾ dark" : "☀ light";
    button.setAttribute("aria-label", `Switch to the ${next} theme`);
  };
  button.addEventListener("click", () => {
    root.dataset.theme = now() === "dark" ? "light" : "dark";
    name();
  });
  dark.addEventListener("change", name);
  place.append(button);
  name();
}

/** What is folded is printed open, and folded again after; but for tables, which are files of their own. */
function printOpen() {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open]):not(:has(table, .result))")];
    opened.forEach((part) => (part.open = true));
  });
  addEventListener("afterprint", () => opened.forEach((part) => (part.open = false)));
}

const data = JSON.parse(document.getElementById("data").textContent);
document.querySelectorAll(".needs-script").forEach((part) => part.remove());
themeButton(document.getElementById("theme"));
printOpen();
runsPlot(data, document.getElementById("runs-plot"));
lawExplorer(data, document.getElementById("law-explorer"));
liveTables(document.querySelector("main"));
