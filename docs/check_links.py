"""Do all links between the Markdown files of this repository lead somewhere? `make check` asks.

Files, folders and the headings named after a `#` are looked up; addresses on the web are not asked.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!`)!?\[[^\]\n]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")


def pages() -> list[Path]:
    """Every Markdown file that people read."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    titles = re.findall(r"^#{1,6} +(.+?) *$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    found = []
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            found.append(f"{page.name}: no such file: {link}")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            found.append(f"{page.name}: no such heading: {link}")
    return found


def main() -> int:
    """One line a broken link; exit code 1 if there is one."""
    wrong = [line for page in pages() for line in broken(page)]
    print("\n".join(wrong) or f"links of {len(pages())} pages lead somewhere")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
