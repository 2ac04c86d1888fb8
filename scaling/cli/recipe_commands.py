"""Commands that question the recipe: tune, coordinates."""

import argparse
import sys
from pathlib import Path

EXAMPLES = {
    "tune": "scaling tune sweeps/rate_transfer.toml --workers 2",
    "coordinates": "scaling coordinates sweeps/quickstart.toml --steps 10",
}


def add_parsers(commands: argparse._SubParsersAction) -> None:
    """Register this module's commands."""

    def add(name: str, function, summary: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {EXAMPLES[name]}")
        made.set_defaults(run=function)
        made.add_argument("sweep", metavar="SWEEP.toml", help="the sweep file, or the name of a packaged sweep")
        made.add_argument("--results", metavar="DIR", type=Path, default=Path("results"), help="root of results (default: results)")
        return made

    tune = add("tune", tune_command, "train the rates of [tune] only: best rate by cell, its law over model size, the rate-transfer plot")
    tune.add_argument("--workers", type=int, default=None, help="one-core processes on this machine (default: its cores)")
    coordinates = add("coordinates", coordinates_command, "coordinate check: does one rate move every width alike?")
    coordinates.add_argument("--steps", type=int, default=10, help="steps to train (default: 10)")
    coordinates.add_argument("--layers", type=int, default=2, help="depth of every model (default: 2)")
    coordinates.add_argument("--seeds", type=int, default=3, help="seeds to average over (default: 3)")


def tune_command(arguments: argparse.Namespace) -> int:
    """Print the best rates to stdout; write runs.csv, tuning.csv, rate_law.csv and the plot."""
    import pandas as pd

    from analysis.files import write_table
    from analysis.plotting import tuning_figures, write_figures
    from analysis.query import render
    from analysis.tuning import rate_law, tuning_table
    from scaling.cli.runs_commands import _resolve
    from scaling.cli.session import Session
    from scaling.config import UserError
    from scaling.launch import default_workers
    from scaling.record import Folder, write_atomic, write_json
    from scaling.sweep_file import find_sweep
    from scaling.tables import write_tables
    from scaling.timings import Stopwatch

    resolved, root = _resolve(arguments.sweep, results=arguments.results)
    if resolved.sweep.tune is None:
        raise UserError(f"{arguments.sweep} has no [tune]; say which rates to try where (docs/sweeps.md)")
    folder = Folder(root)
    root.mkdir(parents=True, exist_ok=True)
    write_atomic(root / "sweep.toml", find_sweep(arguments.sweep).read_bytes())
    session = Session(folder, resolved, arguments.workers or default_workers(resolved.sweep.devices), Stopwatch("preparation"))
    session.tune()
    write_json(folder.resolved, session.resolved)
    rows = pd.DataFrame(write_tables(root, session.resolved))
    rows = rows[rows["role"] == "tune"]
    table = tuning_table(rows)
    law = rate_law(table)
    assert law is not None  # `Session.tune` ends with a law or with a UserError
    write_table(root / "tuning.csv", table)
    write_table(root / "rate_law.csv", law.table)
    plots = write_figures(tuning_figures(table, rows), root)
    shown = ["d_model", "tokens", "batch_tokens", "rate_best", "ci_low", "ci_high", "cost_of_factor_2", "chosen", "rate_used", "penalty"]
    sys.stdout.write(render(table[shown], "table") + render(law.table, "table"))
    print(f"tables in {root}; plot {plots[0]}", file=sys.stderr)
    return 0


def coordinates_command(arguments: argparse.Namespace) -> int:
    """Print the slope of every part over the width to stdout; write coordinates.csv and its plot."""
    import dataclasses

    import pandas as pd

    from scaling.launch import be_a_worker

    be_a_worker(cpu=None, dies_with_stdin=False)
    from analysis.files import write_table
    from analysis.plotting import coordinate_figures, write_figures
    from analysis.query import render
    from scaling.coordinates import coordinate_check, slopes
    from scaling.corpus import check_corpus, prepare
    from scaling.sweep_file import load_sweep
    from scaling.text_axes import only_text

    sweep = load_sweep(arguments.sweep)
    text = only_text(sweep, "unknown", what="coordinates")
    check_corpus(text.corpus)
    corpus = prepare(text.corpus, tokenizer=text.tokenizer, options=sweep.text)
    changes = coordinate_check(sweep, corpus, steps=arguments.steps, layers=arguments.layers, seeds=arguments.seeds)
    root = arguments.results / sweep.name
    root.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame([dataclasses.asdict(change) for change in changes])
    found = slopes(changes)
    table = table.assign(slope=table["part"].map(found))
    write_table(root / "coordinates.csv", table)
    plots = write_figures(coordinate_figures(table), root)
    sys.stdout.write(render(pd.DataFrame([{"part": part, "slope": slope} for part, slope in found.items()]), "table"))
    print(f"0: moves alike at every width; table {root / 'coordinates.csv'}, plot {plots[0]}", file=sys.stderr)
    return 0
