"""`python -m faults [NAME...]`: run the drills and write their table into docs/reliability.md."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from faults import damaged, killed, shared
from faults.bench import ROOT, Bench, Row

DRILLS = {
    "worker": (killed.kill_worker, 34),
    "parent": (killed.kill_parent, 33),
    "both": (killed.kill_both, 33),
    "terminate": (killed.terminate, 6),
    "memory": (killed.out_of_memory, 2),
    "two": (shared.two_launchers, 3),
    "four": (shared.four_launchers, 3),
    "paused": (shared.paused_worker, 4),
    "machine": (shared.dead_machine, 3),
    "pid": (shared.reused_pid, 3),
    "records": (damaged.records, 4),
    "files": (damaged.folder_files, 4),
    "states": (damaged.checkpoints, 4),
    "caches": (damaged.caches, 3),
    "full": (damaged.full_disk, 8),
    "readonly": (damaged.read_only, 4),
    "injected": (damaged.injected, 1),
}
BEGIN, END = "<!-- faults: begin -->\n", "<!-- faults: end -->"
DOCUMENT = ROOT / "docs" / "reliability.md"


def main() -> int:
    """Run the drills asked for; rows of others are kept."""
    command = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    command.add_argument("drills", nargs="*", metavar="NAME", help=f"which (default all): {', '.join(DRILLS)}")
    command.add_argument("--scale", type=float, default=1.0, help="share of the tries, at least one each")
    command.add_argument("--rows", type=Path, default=ROOT / "results" / "faults.json", help="rows so far")
    arguments = command.parse_args()
    if unknown := set(arguments.drills) - set(DRILLS):
        command.error(f"no such drill: {', '.join(unknown)}; allowed: {', '.join(DRILLS)}")
    rows = msgspec.json.decode(arguments.rows.read_bytes(), type=dict[str, Row]) if arguments.rows.exists() else {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="scaling-faults-") as home:
        bench = Bench(Path(home))
        bench.set_up()
        for name in arguments.drills or DRILLS:
            drill, tries = DRILLS[name]
            rows[name] = row = drill(bench, max(1, round(tries * arguments.scale)))
            print(f"{time.monotonic() - began:6.0f} s  {row}", file=sys.stderr, flush=True)
            arguments.rows.parent.mkdir(parents=True, exist_ok=True)
            arguments.rows.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))
    if arguments.scale == 1:
        write_table([rows[name] for name in DRILLS if name in rows])
    return int(any(row.lost or row.recovered < row.tried for row in rows.values()))


def write_table(rows: list[Row]) -> None:
    """Put the table between its markers."""
    lines = ["| fault | times tried | recovered | lost | seen |\n|---|---|---|---|---|\n"]
    lines += [f"| {row.fault} | {row.tried} | {row.recovered} | {row.lost} | {row.seen} |\n" for row in rows]
    text = DOCUMENT.read_text()
    head, _, rest = text.partition(BEGIN)
    DOCUMENT.write_text(head + BEGIN + "".join(lines) + END + rest.partition(END)[2])


if __name__ == "__main__":
    sys.exit(main())
