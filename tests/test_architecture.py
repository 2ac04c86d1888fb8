"""Imports go one way, and need only what is installed; no file outgrows its room."""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def imports(source):
    """Modules that a file, or a tree, imports."""
    for node in ast.walk(ast.parse(source.read_text()) if isinstance(source, Path) else source):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_analysis_knows_neither_jax_nor_scaling():
    for path in (ROOT / "analysis").rglob("*.py"):
        for name in imports(path):
            assert name.split(".")[0] not in {"scaling", "jax", "flax", "optax"}, f"{path} imports {name}"


def test_only_the_command_line_knows_both_halves():
    for path in (ROOT / "scaling").glob("*.py"):
        assert not any(name.split(".")[0] == "analysis" for name in imports(path)), path
        assert not any(name.startswith("scaling.cli") and "scaling.cli.main" not in name for name in imports(path)), path


def test_modules_import_at_their_top_only_what_the_package_depends_on():
    """Extras and what only developers have (jaxtyping) are imported in functions, or for type checks; PIL comes with matplotlib."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = {"PIL"} | {re.split(r"[^A-Za-z0-9_-]", one)[0].lower() for one in project["dependencies"]} | set(sys.stdlib_module_names)
    for path in [*(ROOT / "analysis").rglob("*.py"), *(ROOT / "scaling").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        for name in imports(tree):
            assert name.split(".")[0] in allowed | {"scaling", "analysis"}, f"{path} imports {name}"


def test_there_are_no_import_circles():
    modules = {
        f"{path.relative_to(ROOT).with_suffix('')}".replace("/", "."): path
        for top in ("scaling", "analysis")
        for path in (ROOT / top).rglob("*.py")
    }
    graph = {}
    for name, path in modules.items():
        top_level = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        found = set()
        for node in top_level:
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        graph[name] = found & set(modules) - {name}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            path.append(name)
            for other in graph[name]:
                visit(other)
            done.add(path.pop())

    for name in graph:
        visit(name)


def test_every_module_has_its_place_in_the_readme():
    house = (ROOT / "README.md").read_text().partition("## The house")[2]
    for top in ("scaling", "analysis"):
        missing = [
            path.name for path in (ROOT / top).glob("*.py") if path.name != "__init__.py" and not re.search(rf"\b{path.stem}\b", house)
        ]
        assert not missing


def test_no_file_outgrows_its_room():
    for top in ("scaling", "analysis"):
        for path in (ROOT / top).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 430, path
        assert not list((ROOT / top).rglob("utils.py"))


def test_the_lock_names_no_index_and_no_torch():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and "--index-url" not in text and "\ntorch==" not in text
    pins = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert all("==" in pin for pin in pins) and text.count("--hash=sha256:") >= len(pins)
