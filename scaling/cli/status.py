"""`scaling status`: what is done and what is not, live or for scripts, and where a run's number comes from."""

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scaling.record import Folder, Resolved

WATCH_SECONDS = 0.5


def status_command(arguments: argparse.Namespace) -> int:
    """One line a run that is not done, and the totals; or all runs as JSON; or the live view first."""
    from collections import Counter

    from scaling.cli.runs_commands import program
    from scaling.config import UserError
    from scaling.record import Folder, read_resolved
    from scaling.tables import run_rows

    resolved = read_resolved(arguments.results)
    if arguments.run_id and not arguments.provenance:
        raise UserError("status --run names a run for --provenance; add it")
    if arguments.provenance:
        from scaling.cli.provenance import describe, provenance

        found = provenance(arguments.results, arguments.run_id)
        print(json.dumps(found, indent=1) if arguments.json else describe(found))
        return 0
    if arguments.watch:
        _watch(Folder(arguments.results), resolved)
    rows = run_rows(Folder(arguments.results), resolved)
    if arguments.json:
        names = ("run_id", "trunk_id", "status", "role", "reason", "tokens", "loss")
        print(json.dumps([{name: None if row.get(name, "") == "" else row[name] for name in names} for row in rows], indent=1))
        return 0
    for row in rows:
        if row["status"] != "done":
            print(f"{row['status']:9} {row['role']:8} {row['run_id']}  {row['reason']}".rstrip())
    counts = Counter(row["status"] for row in rows)
    print(f"{len(rows)} runs: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    if counts["done"] == len(rows):
        print(f"complete; open {arguments.results / 'report.html'}", file=sys.stderr)
    else:
        print(f"next: {program()} run {arguments.results / 'sweep.toml'} --results {arguments.results.parent}", file=sys.stderr)
    return 0


def _watch(folder: "Folder", resolved: "Resolved") -> None:
    """Draw what the folder shows until every run is done or failed."""
    from scaling.display import Display, look
    from scaling.plan import group_trunks

    display, trunks = Display(folder, resolved), group_trunks(resolved.runs)
    while any(view.done_runs < len(view.trunk.runs) and not view.failed for view in (look(folder, trunk) for trunk in trunks)):
        display.update()
        time.sleep(WATCH_SECONDS)
    display.update(last=True)
