"""A newcomer's way, walked by a machine: clone, run, open the report, move a slider, query a table, start an own sweep.

    .venv/bin/python benchmarks/walk.py FOLDER      (after `make browser`; FOLDER must not exist; ten minutes on two cores)

Clones this repository into FOLDER, types what the README says, as it says it, and writes docs/walk.md with what came back and pictures of
what was seen. Nothing on that page is written by hand but the words between the steps.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from string import Template
from typing import Any

from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "walk"
LAST_LINES = 12
OWN = """# Question: how does the loss on my own text fall with parameters and bytes?
name = "mine"
corpus = "~/code"                    # any folder of text

[model]
d_model = [8, 16, 24, 32]

[data]
tokens = ["0.15M", "0.3M", "0.6M", "1.2M"]

[training]
seeds = 2
"""
QUERY = "SELECT d_model, tokens, count(*) AS runs, avg(loss) AS loss FROM runs WHERE role = 'fit' GROUP BY ALL ORDER BY ALL LIMIT 6"
PAGE = Template("""# A newcomer's way, step by step

Walked on $day, from a fresh clone in an environment with nothing but Python, git and make, by `benchmarks/walk.py`, which wrote this
page: every line of output and every picture is what came back.

## 1. Clone and run

```
$$ git clone REPOSITORY scaling-harness && cd scaling-harness
$$ make run
$run
```

$run_minutes from the clone to this, set-up included.

## 2. Open the report

`results/quickstart/report.html`, in any browser, from the disk:

![The top of the report](walk/report.png)

On a telephone:

![The report, 390 pixels wide](walk/report_phone.png)

## 3. Move a slider

The explorer begins at the largest model and the longest data. Before: $before.

![The explorer before](walk/explorer_before.png)

The slider *parameters N* moved to the right, as far as the arrow key *Page Up* moves it in two strokes. After: $after.

![The explorer after](walk/explorer_after.png)

The page shows the command that gives the same numbers, and in the terminal it does:

```
$$ $predict
$predicted
```

## 4. Query a table

```
$$ .venv/bin/scaling query results/quickstart "$query"
$queried
```

## 5. Start a sweep of your own

Text of your own, in a folder (here the source of this project, as `~/code`), and a sweep file `mine.toml`:

```toml
$own
```

What would run, and how long?

```
$$ .venv/bin/scaling plan mine.toml
$planned
```

```
$$ .venv/bin/scaling run mine.toml
$ran
```

![Its own report](walk/mine.png)
""")


def typed(folder: Path, command: str, *, lines: int = LAST_LINES) -> str:
    """What a command prints, its last lines; the walk ends where one fails."""
    done = subprocess.run(["bash", "-c", command], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    said = (done.stdout + done.stderr if lines else done.stdout).rstrip().splitlines()
    return "\n".join(line.rstrip() for line in (["...", *said[-lines:]] if 0 < lines < len(said) else said))


def first_answer(page: Any) -> str:
    """The explorer's first answer in words."""
    row = page.locator(".panels .panel").first.locator("tbody tr").first
    name, estimate, interval = (" ".join(cell.inner_text().split()) for cell in row.locator("th, td").all())
    return f"{name} {estimate} ({interval})"


def look(report: Path) -> dict[str, str]:
    """Open a report as a reader would, move a slider, take the pictures."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium") or shutil.which("google-chrome"))
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.goto(report.as_uri())
        page.locator(".numbers tbody tr").first.wait_for()
        page.screenshot(path=PICTURES / "report.png")
        panel, slider = page.locator(".panels .panel").first, page.locator("#slider-n")
        panel.scroll_into_view_if_needed()
        before = first_answer(page)
        panel.screenshot(path=PICTURES / "explorer_before.png")
        slider.focus()
        for _ in range(2):
            page.keyboard.press("PageUp")
        page.wait_for_timeout(300)
        after, command = first_answer(page), page.locator(".command").first.inner_text()
        panel.screenshot(path=PICTURES / "explorer_after.png")
        phone = browser.new_page(viewport={"width": 390, "height": 800})
        phone.goto(report.as_uri())
        phone.locator(".numbers tbody tr").first.wait_for()
        phone.screenshot(path=PICTURES / "report_phone.png")
        browser.close()
    if before == after:
        sys.exit("the slider moved nothing")
    return {"before": before, "after": after, "predict": command}


def picture(report: Path, name: str) -> None:
    """The top of a report."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium") or shutil.which("google-chrome"))
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.goto(report.as_uri())
        page.locator(".numbers tbody tr").first.wait_for()
        page.screenshot(path=PICTURES / name)
        browser.close()


def main() -> None:
    """Walk, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    clone = parser.parse_args().folder.absolute()
    PICTURES.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    typed(ROOT, f"git clone --quiet {ROOT} {clone}")
    told = {"day": time.strftime("%Y-%m-%d"), "query": QUERY, "own": OWN.rstrip()}
    told["run"] = typed(clone, "make run 2>&1", lines=20)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    told["run_minutes"] = f"{minutes} min {seconds:02d} s"
    told |= look(clone / "results" / "quickstart" / "report.html")
    told["predicted"] = typed(clone, f".venv/bin/{told['predict']}")
    told["queried"] = typed(clone, f'.venv/bin/scaling query results/quickstart "{QUERY}"')
    code = clone / "code"
    for package in ("scaling", "analysis", "tests", "benchmarks", "docs"):
        shutil.copytree(clone / package, code / package, ignore=shutil.ignore_patterns("__pycache__", "*.png", "*.svg", "sweeps"))
    (clone / "mine.toml").write_text(OWN.replace("~/code", str(code)))
    told["planned"] = typed(clone, ".venv/bin/scaling plan mine.toml 2>&1", lines=30)
    told["ran"] = typed(clone, ".venv/bin/scaling run mine.toml 2>&1", lines=20)
    picture(clone / "results" / "mine" / "report.html", "mine.png")
    page = PAGE.substitute(told).replace(str(code), "~/code").replace(str(clone), ".")
    (ROOT / "docs" / "walk.md").write_text(page)


if __name__ == "__main__":
    main()
