"""The pages of docs/: their links, their place in the site, and the laws that they name (`make docs` builds the site itself)."""

import importlib.util
import re
from pathlib import Path

from analysis.catalog import catalog

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("check_links", ROOT / "docs" / "check_links.py")
assert SPEC is not None and SPEC.loader is not None
check_links = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_links)


def test_all_links_between_pages_lead_somewhere():
    assert [line for page in check_links.pages() for line in check_links.broken(page)] == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# Two words, `code`\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md) [b](#here) [c](other.md#two-words-code) ![d](no.png)\n[e](gone.md) [f](other.md#three) [g](https://x.org/y)\n"
        "`[h](code.md)`\n```\n# [i](block.md)\n```\n[j](#i)\n"
    )
    assert [line.rsplit(" ", 1)[1] for line in check_links.broken(page)] == ["no.png", "gone.md", "other.md#three", "#i"]


def test_every_page_has_its_place_in_the_site():
    named = re.findall(r"^\w+$", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), flags=re.M)
    assert sorted(named) == sorted(path.stem for path in (ROOT / "docs").glob("*.md") if path.stem != "index")


def test_the_page_of_the_laws_is_the_registry():
    text = (ROOT / "docs" / "laws.md").read_text(encoding="utf-8")
    rows = {
        cells[0].strip("` "): cells[1:] for cells in (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `"))
    }
    registry = catalog()
    assert set(rows) == set(registry["name"])
    for law in registry.itertuples():
        assert rows[law.name] == [f"`{law.formula}`", law.source]
