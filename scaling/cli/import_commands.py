"""The command that brings other people's tables in: import."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.foreign import Imported

EXAMPLES = """examples:
  scaling import list                                        the known formats
  scaling import epoch svg_extracted_data.csv --out runs.csv
  scaling import steplaw dense_lr_bs_loss.csv --best
  scaling import columns theirs.csv --map params=ModelSize --map "tokens=flops / (6*params)" --map loss=val --unit params=1e6
then: scaling fit runs.csv                                   (docs/foreign.md)"""


def add_parsers(commands: argparse._SubParsersAction) -> None:
    """Register this module's command."""
    summary = "turn a published or foreign table of runs into a runs.csv that `scaling fit` reads"
    made = commands.add_parser(
        "import", help=summary, description=summary, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.set_defaults(run=import_command)
    made.add_argument("layout", metavar="FORMAT", help="a known format (`scaling import list`), auto, or columns for any CSV")
    made.add_argument("path", metavar="PATH", type=Path, nargs="?", help="the file, plain or .gz")
    made.add_argument(
        "--out", metavar="FILE.csv", type=Path, help="where to write (default: runs.csv here; an existing one is not overwritten)"
    )
    made.add_argument(
        "--map",
        metavar="COLUMN=EXPR",
        action="append",
        default=[],
        help="a column of ours from one of theirs, or arithmetic on theirs: tokens='flops / (6*params)'; repeatable",
    )
    made.add_argument("--unit", metavar="COLUMN=FACTOR", action="append", default=[], help="multiply a column: tokens=1e9; repeatable")
    made.add_argument("--best", action="store_true", help="fit only the best run of each N and D (the others get role tune)")


def import_command(arguments: argparse.Namespace) -> int:
    """Print the path of the table to stdout; what is known about it, and what is wrong with it, to stderr."""
    from analysis.errors import UserError
    from analysis.files import write_table
    from analysis.foreign import get_layout, import_runs

    if arguments.layout == "list":
        return _print_layouts()
    if arguments.layout != "auto":
        get_layout(arguments.layout)
    if arguments.path is None:
        raise UserError(f"import {arguments.layout}: name the file: scaling import {arguments.layout} PATH")
    columns = dict(_pair("--map", text) for text in arguments.map)
    units = {name: _factor(name, text) for name, text in (_pair("--unit", text) for text in arguments.unit)}
    out = _target(arguments.out, arguments.path)
    imported = import_runs(arguments.layout, arguments.path, columns=columns, units=units, best=arguments.best)
    write_table(out, imported.table)
    _tell(imported, out)
    print(out)
    return 0


def _tell(imported: "Imported", out: Path) -> None:
    """Say what was read and whether laws can be fitted to it."""
    from analysis.errors import UserError
    from analysis.foreign import get_layout
    from analysis.guards import check_runs
    from analysis.runs import read_runs

    lines = [f"{imported.layout}: {get_layout(imported.layout).source}", *(f"note: {text}" for text in imported.notes)]
    try:
        runs = read_runs(out)
        lines += [f"warning: {finding}" for finding in check_runs(runs)]
        lines.append(f"{len(runs.frame)} of {len(imported.table)} rows can be fitted, N is {runs.n_column}; next: scaling fit {out}")
    except UserError as error:
        lines.append(f"{len(imported.table)} rows; not ready for `scaling fit`: {error}")
    print("\n".join(lines), file=sys.stderr)


def _print_layouts() -> int:
    """Print the known formats to stdout."""
    import pandas as pd

    from analysis.foreign import LAYOUTS
    from analysis.query import render

    rows = [{"format": name, "columns": ", ".join(form.needs[:5]), "source": form.source} for name, form in LAYOUTS.items()]
    sys.stdout.write(render(pd.DataFrame(rows), "table"))
    return 0


def _target(given: Path | None, source: Path) -> Path:
    """Where to write; nothing of value is overwritten."""
    from analysis.errors import UserError

    out = given or Path("runs.csv")
    if out.suffix.lower() != ".csv":
        raise UserError(f"--out {out} does not end in .csv; name a file such as runs.csv")
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"--out {out} is the file that is read; name another")
    if (out.parent / "sweep.resolved.json").exists() and out.name == "runs.csv":
        raise UserError(f"{out} is the table of a sweep of yours; name another file with --out")
    if given is None and out.exists():
        raise UserError(f"{out} exists; name it with --out to overwrite it, or another file")
    return out


def _pair(flag: str, text: str) -> tuple[str, str]:
    """Split COLUMN=VALUE."""
    from analysis.errors import UserError

    name, sign, value = text.partition("=")
    if not sign or not name.strip() or not value.strip():
        raise UserError(f"{flag} {text!r} is not COLUMN={'EXPR' if flag == '--map' else 'FACTOR'}")
    return name.strip(), value.strip()


def _factor(name: str, text: str) -> float:
    """Parse the factor of a unit."""
    from analysis.errors import UserError

    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"--unit {name}={text} is not allowed; the factor is a number above 0, such as 1e9")
    return value
