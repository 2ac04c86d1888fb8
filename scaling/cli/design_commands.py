"""Commands that say what to train next: suggest."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.design import Pool
    from analysis.runs import Runs
    from scaling.config import RunConfig

EXAMPLE = "scaling suggest results/quickstart --target params=1M,tokens=20M --budget 1e14"


def add_parsers(commands: argparse._SubParsersAction) -> None:
    """Register this module's commands."""
    summary = "what to train next: the runs that take most off a target's interval, for a budget of FLOPs; a sweep file ready to run"
    made = commands.add_parser("suggest", help=summary, description=summary, epilog=f"example: {EXAMPLE}")
    made.set_defaults(run=suggest_command)
    made.add_argument("source", metavar="RESULTS|RUNS.csv", type=Path, help="a sweep's results folder, or a CSV of runs")
    made.add_argument("--budget", required=True, metavar="FLOPS", help="training compute to spend: 1e17")
    made.add_argument(
        "--target", required=True, action="append", metavar="params=N,tokens=D", help="where the loss is wanted; repeatable: a region"
    )
    made.add_argument(
        "--candidates", metavar="SWEEP.toml|CSV", type=Path, help="runs to choose from (default: cells of and beyond the sweep)"
    )
    made.add_argument("--out", metavar="SWEEP.toml", type=Path, help="where the sweep file goes (default: RESULTS/suggested.toml)")
    made.add_argument("--n-column", metavar="C", help="column that is N (default: the sweep's, else guessed)")
    made.add_argument("--d-column", metavar="C", help="column that is D (default: guessed)")
    made.add_argument("--loss-column", metavar="C", help="column that is the loss (default: guessed)")
    made.add_argument("--exclude", metavar="EXPR", help="leave runs out: COLUMN OP VALUE, joined by `and`, `or`")
    made.add_argument("--format", default="table", metavar="table|csv|json", help="how to print (default: table)")


def parse_target(text: str) -> tuple[float, float]:
    """``params=1e9,tokens=20B`` -> (params, tokens).

    Raises
    ------
    UserError
        When it is not understood.

    >>> parse_target("params=1e9,tokens=20B")
    (1000000000.0, 20000000000.0)
    """
    from scaling.config import UserError, parse_quantity

    parts = dict(part.split("=", 1) for part in text.replace(" ", "").split(",") if "=" in part)
    if set(parts) != {"params", "tokens"} or text.count("=") != 2:
        raise UserError(f"target {text!r} is not understood; write params=N,tokens=D, such as params=1e9,tokens=20B")
    return parse_quantity(parts["params"]), parse_quantity(parts["tokens"])


def suggest_command(arguments: argparse.Namespace) -> int:
    """Print the runs to train to stdout, what they buy to stderr; write the sweep file."""
    import numpy as np

    from analysis.design import suggest
    from analysis.query import FORMATS, render
    from analysis.runs import read_runs
    from analysis.surface import Places
    from scaling.config import UserError, format_quantity, parse_quantity

    if arguments.format not in FORMATS:
        raise UserError(f"--format {arguments.format!r} is unknown; allowed: {', '.join(FORMATS)}")
    budget, targets = parse_quantity(arguments.budget), [parse_target(text) for text in arguments.target]
    target = Places.of(*(np.array(values) for values in zip(*targets, strict=True)))  # of new tokens
    is_sweep = (arguments.source / "sweep.resolved.json").is_file()
    n_column = arguments.n_column
    if is_sweep and n_column is None:
        from scaling.record import read_resolved

        n_column = read_resolved(arguments.source).sweep.fit.n_column
    runs = read_runs(
        arguments.source, n_column=n_column, d_column=arguments.d_column, loss_column=arguments.loss_column, exclude=arguments.exclude
    )
    pool, configs = _pool(arguments, runs, budget=budget, targets=targets)
    table, surface = suggest(runs, pool, target, budget=budget)
    if configs:
        table["trunk_id"] = [configs[name].trunk_id for name in table["run_id"]]
    loss = float(np.exp(surface.predict(target)).mean())
    if arguments.format == "table":
        shown = table.drop(columns=["trunk_id", "half_width_before"])
        shown["params"], shown["tokens"] = (shown[name].map(format_quantity) for name in ("params", "tokens"))
        shown["flops"], shown["flops_total"] = (shown[name].map("{:.3g}".format) for name in ("flops", "flops_total"))
        shown["half_width_after"] = shown["half_width_after"].map("{:.2%}".format)
        sys.stdout.write(render(shown, "table"))
    else:
        sys.stdout.write(render(table, arguments.format))
    first, last = table.iloc[0], table.iloc[-1]
    where = ", ".join(f"N = {format_quantity(n)}, D = {format_quantity(d)}" for n, d in targets)
    print(
        f"target {where}: loss {loss:.4g} now, 95 % interval +-{first['half_width_before']:.2%} (law and drift); expected"
        f" +-{last['half_width_after']:.2%} after {len(table)} runs, {last['flops_total']:.3g} of {budget:.3g} FLOPs",
        file=sys.stderr,
    )
    if configs:
        _write_sweep(arguments, [configs[name] for name in table["run_id"]], is_sweep=is_sweep)
    return 0


def _pool(
    arguments: argparse.Namespace, runs: "Runs", *, budget: float, targets: list[tuple[float, float]]
) -> tuple["Pool", dict[str, "RunConfig"]]:
    """Candidates, and their configurations where they are a sweep's."""
    from analysis.design import read_pool
    from scaling.cli.candidates import around, pool_of
    from scaling.config import UserError
    from scaling.plan import resolve
    from scaling.record import Folder, read_resolved
    from scaling.sweep_file import load_sweep

    candidates: Path | None = arguments.candidates
    if candidates is not None and candidates.suffix != ".toml":
        return read_pool(candidates, n_column=runs.n_column, d_column=runs.d_column, skip=runs), {}
    is_sweep = (arguments.source / "sweep.resolved.json").is_file()
    if candidates is None and not is_sweep:
        raise UserError(f"{arguments.source} is no sweep's folder, so what could be trained is not known; name it with --candidates")
    known = read_resolved(arguments.source) if is_sweep else None
    if candidates is not None:
        configs = resolve(load_sweep(candidates), corpus_hash=known.corpus_hash if known else "unknown")
        configs = [run for run in configs if run.role == "fit"]
    else:
        assert known is not None
        largest = (max(n for n, _ in targets), max(d for _, d in targets))
        configs = around(known, params=largest[0], tokens=largest[1], budget=budget)
    pool = pool_of(
        configs,
        Folder(arguments.source),
        n_column=runs.n_column,
        done=set(runs.all_rows["run_id"][runs.all_rows["status"] == "done"]) if is_sweep else (),
    )
    return pool, {run.run_id: run for run in configs}


def _write_sweep(arguments: argparse.Namespace, configs: list["RunConfig"], *, is_sweep: bool) -> None:
    """Write the sweep file: that of the folder, with the suggested runs as `[[run]]`; beside a CSV only these, to paste."""
    from scaling.cli.candidates import cells_toml
    from scaling.cli.runs_commands import program
    from scaling.record import write_atomic
    from scaling.sweep_file import load_sweep

    cells = cells_toml(configs)
    if not is_sweep:
        print(f"to train them, add to a sweep file:\n{cells}", file=sys.stderr)
        return
    root: Path = arguments.source
    out = arguments.out or root / "suggested.toml"
    text = (root / "sweep.toml").read_text(encoding="utf-8")
    write_atomic(out, f"{text.rstrip()}\n\n# Suggested for the target {' '.join(arguments.target)}\n{cells}".encode())
    load_sweep(out)
    print(f"next: {program()} run {out} --results {root.parent}", file=sys.stderr)
