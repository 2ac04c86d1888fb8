"""Commands that read tables: fit, plot, report, query, laws, predict, optimal."""

import argparse
import dataclasses
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.cli import planning

if TYPE_CHECKING:
    from analysis.fitting import Fit
    from analysis.presets import AllocationPreset, Preset
    from analysis.tables import Analysis

Command = Callable[[argparse.Namespace], int]

EXAMPLES = {
    "fit": "scaling fit results/quickstart --law chinchilla        scaling fit runs.csv --n-column params --exclude 'N < 1e6'",
    "plot": "scaling plot results/quickstart --format png,svg,pdf",
    "report": "scaling report results/quickstart        scaling report results/first results/second",
    "query": 'scaling query results/quickstart "SELECT d_model, tokens, avg(loss) FROM runs GROUP BY ALL ORDER BY 1, 2"',
    "laws": "scaling laws        scaling laws besiroglu2024        scaling laws 'E + A*N**-alpha + B*D**-beta'",
    "predict": "scaling predict results/quickstart --params 1M --tokens 20M        scaling predict besiroglu2024 --params 1B --tokens 20B",
    "optimal": "scaling optimal results/quickstart --flops 1e14        scaling optimal besiroglu2024 --flops 1e21 --inference-tokens 1e12",
}
DEFAULTS: dict[str, Any] = {
    "laws": ("power-n", "power-d", "power-c", "chinchilla"),
    "n_column": None,
    "d_column": None,
    "loss_column": None,
    "exclude": None,
    "loss": "huber:auto",
    "link": "log",
    "bootstrap": 1000,
    "seed": 0,
}


def add_parsers(commands: argparse._SubParsersAction) -> None:
    """Register this module's commands."""

    def add(name: str, function: Command, summary: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {EXAMPLES[name]}")
        made.set_defaults(run=function)
        return made

    fit = add("fit", fit_command, "fit laws to a results folder or any CSV of runs, with intervals; write tables, plots, checklist, report")
    fit.add_argument("--no-plots", action="store_true", help="leave the plots out (they take most of the time)")
    plot = add("plot", plot_command, "fit, then draw the plots (give it the flags that you gave to fit)")
    report = add(
        "report", report_command, "fit, draw, and write one self-contained HTML page and the checklist; of two sweeps, what differs"
    )
    for made in (fit, plot, report):
        made.add_argument("source", metavar="RESULTS|RUNS.csv", type=Path, help="a sweep's results folder, or a CSV of runs")
        if made is report:
            made.add_argument("other", metavar="OTHER", type=Path, nargs="?", help="a second sweep or CSV: compare the two under one law")
        _add_fit_options(made, many=True)
        made.add_argument("--out", metavar="DIR", type=Path, help="where to write (default: RESULTS, or the CSV's name without .csv)")
    plot.add_argument("--format", default="png", metavar="png|svg|pdf", help="formats of the plots, commas between (default: png)")

    query = add("query", query_command, "SQL over the tables of a results folder: runs, curves, laws, fits, ...; reading only")
    query.add_argument("results", metavar="RESULTS", type=Path, help="a results folder; every CSV and parquet file in it is a table")
    query.add_argument("sql", metavar="SQL", help="one SELECT, WITH, DESCRIBE, SHOW or SUMMARIZE statement")
    laws = add("laws", laws_command, "the registry: law forms with parameters and sources, and published presets")
    laws.add_argument("name", metavar="NAME|FORMULA", nargs="?", help="show this form, preset or formula in full")

    predict = add("predict", predict_command, "loss of a model of a size on a number of tokens, with intervals")
    predict.add_argument("source", metavar="RESULTS|RUNS.csv|PRESET", help="what holds the runs, or a published preset (scaling laws)")
    predict.add_argument("--params", required=True, metavar="N", help="parameters, counted as the law counts them: 1e9, 1B, 150k")
    predict.add_argument("--tokens", required=True, metavar="D", help="training tokens: 20e9, 20B, 4M")
    predict.add_argument("--tasks", action="store_true", help="the metrics of RESULTS/evaluation.csv too: N, D -> loss -> metric")
    optimal = add("optimal", optimal_command, "parameters and tokens that make the best of a compute budget, with intervals")
    optimal.add_argument("source", metavar="RESULTS|RUNS.csv|PRESET", help="what holds the runs, or a published preset (scaling laws)")
    planning.add_flags(optimal)
    optimal.add_argument(
        "--inference-tokens",
        metavar="D",
        help="tokens that the model will serve; --flops then pays for training and serving",
    )
    for made in (predict, optimal):
        made.add_argument("--unique-tokens", metavar="U", help="unique tokens, for data-constrained laws (default: all are unique)")
        _add_fit_options(made, many=False)
    for made in (query, laws, predict, optimal):
        made.add_argument("--format", default="table", metavar="table|csv|json", help="how to print (default: table)")


def _add_fit_options(made: argparse.ArgumentParser, *, many: bool) -> None:
    """Add flags that say how laws are fitted; what is not given comes from the sweep's [fit], then from DEFAULTS."""
    default = "the sweep's, else power-n power-d power-c chinchilla" if many else "chinchilla"
    repeatable = ", repeatable" if many else ""
    made.add_argument("--law", action="append", metavar="NAME|FORMULA", help=f"law to fit{repeatable} (default: {default})")
    made.add_argument("--loss", metavar="KIND", help="huber:auto, huber:1e-3, lad, mse or asymmetric:10 (default: huber:auto)")
    made.add_argument("--link", metavar="log|linear", help="residuals of the log loss or of the loss (default: log)")
    made.add_argument("--n-column", metavar="C", help="column that is the law's N (default: the sweep's, else guessed)")
    made.add_argument("--d-column", metavar="C", help="column that is the law's D (default: guessed)")
    made.add_argument("--loss-column", metavar="C", help="column that is the loss (default: guessed)")
    made.add_argument("--exclude", metavar="EXPR", help="leave runs out (exclusions.csv lists them): COLUMN OP VALUE, with `and`, `or`")
    made.add_argument("--bootstrap", metavar="DRAWS", help="draws for the intervals; 0 for instant ones, HC3 or CR2 (default: 1000)")
    made.add_argument("--seed", metavar="S", help="seed of the draws (default: 0)")


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settle how to fit: flags, then the [fit] of the sweep that made the folder, then DEFAULTS."""
    settings = dict(DEFAULTS)
    if (Path(arguments.source) / "sweep.resolved.json").is_file():
        from scaling.cli.loop import fit_settings
        from scaling.record import read_resolved

        settings |= fit_settings(read_resolved(Path(arguments.source)).sweep.fit)
    given = {key: value for key in DEFAULTS if (value := getattr(arguments, key, None)) is not None}
    if "bootstrap" in given:
        given["bootstrap"] = _whole("--bootstrap", given["bootstrap"], most=100_000)
    if "seed" in given:
        given["seed"] = _whole("--seed", given["seed"], most=2**32 - 1)
    return settings | given | ({"laws": tuple(arguments.law)} if arguments.law else {})


def _whole(flag: str, text: str, *, most: int) -> int:
    """Parse a whole number of 0 to `most`."""
    from analysis.errors import UserError

    if not text.isascii() or not text.isdigit() or int(text) > most:
        raise UserError(f"{flag} {text!r} must be a whole number from 0 to {most}")
    return int(text)


def _where(arguments: argparse.Namespace) -> Path:
    """Folder to write to: --out, the results folder, or a folder beside the CSV with its name."""
    from analysis.errors import UserError

    source: Path = arguments.source
    if arguments.out is None and source.is_file() and not re.search(r"\.csv(\.gz)?$", source.name, re.IGNORECASE):
        raise UserError(f"{source} does not end in .csv; name a folder to write to with --out DIR")
    out = arguments.out or (source if source.is_dir() else source.with_name(re.sub(r"\.csv(\.gz)?$", "", source.name, flags=re.IGNORECASE)))
    if out.exists() and not out.is_dir():
        raise UserError(f"cannot write to {out}: it is a file; name a folder with --out DIR")
    return out


def _analyse(arguments: argparse.Namespace) -> tuple["Analysis", Path]:
    """Fit every law and write the tables; return the analysis and its folder."""
    from analysis.laws import get_law
    from analysis.tables import analyse

    options, out = _options(arguments), _where(arguments)
    for law in options["laws"]:
        get_law(law)
    return analyse(arguments.source, out=out, **options), out


def _analyse_texts(arguments: argparse.Namespace, *, format: str | None) -> tuple[str, list[Path], Path] | None:
    """A law for each text of a results folder that holds several: summary, plots and folder; None where it holds one.

    `format` of the plots; None draws none.
    """
    from analysis.groups import analyse_groups, group_summary, groups_of
    from analysis.plotting import write_figures
    from analysis.text_plots import group_figures

    if not groups_of(arguments.source):
        return None
    out = _where(arguments)
    found = analyse_groups(arguments.source, out=out, **_options(arguments))
    return group_summary(found), write_figures(group_figures(found, arguments.source), out, format=format) if format else [], out


def fit_command(arguments: argparse.Namespace) -> int:
    """Print the laws to stdout; write the tables, the checklist, and, unless they are not wanted, plots and report."""
    from analysis.plotting import plot_all
    from analysis.report import write_report
    from analysis.report_text import summary

    if texts := _analyse_texts(arguments, format=None if arguments.no_plots else "png"):
        print(texts[0], flush=True)
        print(f"in {texts[2]}: groups.csv; tables of each text in groups/", file=sys.stderr)
        return 0
    analysis, out = _analyse(arguments)
    print(summary(analysis).rstrip(), flush=True)
    report = write_report(analysis, out, () if arguments.no_plots else plot_all(analysis, out))
    print(f"in {out}: tables, {'' if arguments.no_plots else 'plots, '}checklist.md; open {report}", file=sys.stderr)
    return 0


def plot_command(arguments: argparse.Namespace) -> int:
    """Print the paths of the plots to stdout."""
    from analysis.plotting import parse_formats, plot_all

    parse_formats(arguments.format)
    if texts := _analyse_texts(arguments, format=arguments.format):
        plots = texts[1]
    else:
        analysis, out = _analyse(arguments)
        plots = plot_all(analysis, out, format=arguments.format)
    for path in plots:
        print(path)
    return 0


def report_command(arguments: argparse.Namespace) -> int:
    """Print the path of the report to stdout."""
    from analysis.plotting import plot_all
    from analysis.report import write_report

    if arguments.other is not None:
        return _compare(arguments)
    analysis, out = _analyse(arguments)
    print(write_report(analysis, out, plot_all(analysis, out)))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    """Print what differs between two sweeps, and the path of the page."""
    from analysis.between import compare_sweeps, comparison_answer
    from analysis.errors import UserError
    from analysis.fitting import Fit
    from analysis.report_between import write_comparison

    fits, names = [], []
    for source in (arguments.source, arguments.other):
        if not source.exists():
            raise UserError(f"{source}: is no file or folder; name two results folders or CSVs of runs")
        fitted = _source(argparse.Namespace(**{**vars(arguments), "source": source}))
        assert isinstance(fitted, Fit)
        fits.append(fitted)
        names.append(re.sub(r"\.csv(\.gz)?$", "", source.resolve().name, flags=re.IGNORECASE))
    found = compare_sweeps(*fits)
    out = arguments.out or arguments.other.parent / f"{names[0]}-and-{names[1]}"
    print(comparison_answer(found, (names[0], names[1])))
    print(write_comparison(found, out, (names[0], names[1])))
    return 0


def query_command(arguments: argparse.Namespace) -> int:
    """Print the result of a statement to stdout."""
    from analysis.query import query, render

    _check_format(arguments.format)
    sys.stdout.write(render(query(arguments.results, arguments.sql), arguments.format))
    return 0


def laws_command(arguments: argparse.Namespace) -> int:
    """Print forms and presets to stdout, or one of them in full."""
    from analysis.catalog import catalog, describe
    from analysis.query import render

    _check_format(arguments.format)
    sys.stdout.write(render(catalog() if arguments.name is None else describe(arguments.name), arguments.format))
    return 0


def predict_command(arguments: argparse.Namespace) -> int:
    """Print the predicted loss to stdout, what it rests on to stderr."""
    from analysis.optimal import predict
    from scaling.config import parse_quantity

    _check_format(arguments.format)
    params, tokens = parse_quantity(arguments.params), parse_quantity(arguments.tokens)
    unique = None if arguments.unique_tokens is None else parse_quantity(arguments.unique_tokens)
    source = _source(arguments)
    answer = dataclasses.asdict(predict(source, params=params, tokens=tokens, unique_tokens=unique))
    answer = {_CI_NAMES.get(name, name): value for name, value in answer.items()}
    rows = [
        ("loss", answer["loss"], answer["loss_ci_low"], answer["loss_ci_high"], "nats/token, the law"),
        ("loss", answer["loss"], answer["pi_low"], answer["pi_high"], "nats/token, one new run, if the law is true"),
        (
            "loss",
            answer["predicted_model"],
            answer["pi_model_low"],
            answer["pi_model_high"],
            "nats/token, one new run, if it is only a law",
        ),
    ]
    rows = rows[:1] + [row for row in rows[1:] if math.isfinite(row[2])]
    if arguments.tasks:
        from analysis.task_prediction import predict_metrics

        for found in predict_metrics(source, arguments.source, params=params, tokens=tokens, unique_tokens=unique):
            rows.append((found.name, found.value, found.low, found.high, f"{found.form} of the loss; one run scatters by {found.rmse:.2g}"))
            answer |= {found.name: found.value, f"{found.name}_ci_low": found.low, f"{found.name}_ci_high": found.high}
    return _print_answer(arguments, source, answer, rows)


def optimal_command(arguments: argparse.Namespace) -> int:
    """Print the compute-optimal model to stdout, what it rests on to stderr."""
    from analysis.optimal import compute_optimal
    from scaling.config import parse_quantity

    _check_format(arguments.format)
    flops = planning.budget_of(arguments)
    served = None if arguments.inference_tokens is None else parse_quantity(arguments.inference_tokens)
    unique = None if arguments.unique_tokens is None else parse_quantity(arguments.unique_tokens)
    source = _source(arguments)
    if arguments.reducible is not None:
        flops = planning.smaller_loss(arguments, source, flops)
    answer = dataclasses.asdict(compute_optimal(source, flops, inference_tokens=served, unique_tokens=unique))
    answer = {_CI_NAMES.get(name, name): value for name, value in answer.items()}
    rows = [
        ("params_opt", answer["params_opt"], answer["params_ci_low"], answer["params_ci_high"], f"params: {answer['n_column']}"),
        ("tokens_opt", answer["tokens_opt"], answer["tokens_ci_low"], answer["tokens_ci_high"], "tokens"),
        (
            "tokens_per_param",
            answer["tokens_per_param"],
            answer["tokens_per_param_ci_low"],
            answer["tokens_per_param_ci_high"],
            "ratio",
        ),
        ("loss", answer["loss"], answer["loss_ci_low"], answer["loss_ci_high"], "nats/token"),
    ]
    code = _print_answer(arguments, source, answer, rows if math.isfinite(answer["loss"]) else rows[:-1])
    if arguments.hardware is not None:
        planning.tell_price(arguments, answer)
    if arguments.entry:
        planning.print_entry(arguments, answer)
    return code


# The names that the tables use: quantity_ci_low, quantity_ci_high.
_CI_NAMES = {
    "low": "loss_ci_low",
    "high": "loss_ci_high",
    "params_low": "params_ci_low",
    "params_high": "params_ci_high",
    "tokens_low": "tokens_ci_low",
    "tokens_high": "tokens_ci_high",
    "tokens_per_param_low": "tokens_per_param_ci_low",
    "tokens_per_param_high": "tokens_per_param_ci_high",
    "loss_low": "loss_ci_low",
    "loss_high": "loss_ci_high",
}


def _print_answer(
    arguments: argparse.Namespace, source: "Fit | Preset | AllocationPreset", answer: dict[str, Any], rows: list[tuple]
) -> int:
    """Print rows for people, or the whole answer as one row for machines; and what it rests on."""
    import pandas as pd

    from analysis.query import render

    if arguments.format == "table":
        frame = pd.DataFrame(rows, columns=["quantity", "value", "ci_low", "ci_high", "unit"])
        frame[["value", "ci_low", "ci_high"]] = frame[["value", "ci_low", "ci_high"]].map(
            lambda value: f"{value:.5g}" if math.isfinite(value) else ""
        )
    else:
        frame = pd.DataFrame([answer])
    sys.stdout.write(render(frame, arguments.format))
    served, unique = answer.get("inference_tokens", 0.0), answer["unique_tokens"]
    compute = "C" if answer["law"] == "allocation" else f"C = 6ND + 2N x {served:.4g} tokens served" if served else "C = 6ND"
    epochs = f", U = {unique:.4g} unique tokens" if math.isfinite(unique) else ""
    notes = [
        f"{answer['source']}: law {answer['law']}, N is {answer['n_column']}{epochs}, {compute} = {answer['flops']:.4g};"
        f" {answer['extrapolation']}"
    ]
    status = getattr(source, "status", None)
    if status is not None:
        notes.append(f"fit {status}; {100 * answer['ci_level']:g} % intervals are conditional on the law")
        notes += [f"warning: {text}" for text in getattr(source, "warnings", ())]
    print("\n".join(notes), file=sys.stderr)
    return 0


def _source(arguments: argparse.Namespace) -> "Fit | Preset | AllocationPreset":
    """Return a published preset, or the law fitted to a results folder or CSV, with draws."""
    from analysis.errors import UserError
    from analysis.fitting import fit
    from analysis.presets import get_preset
    from analysis.runs import read_runs
    from analysis.uncertainty import bootstrap

    options = _options(arguments)
    if len(arguments.law or ()) > 1:
        raise UserError(f"{arguments.command}: one --law at a time, not {', '.join(arguments.law)}")
    if not Path(arguments.source).exists():
        preset = get_preset(arguments.source)
        given = [name for name in ("law", *DEFAULTS) if getattr(arguments, name, None) is not None]
        if given:
            raise UserError(f"--{given[0].replace('_', '-')} does not apply to the published preset {preset.name}; leave it out")
        return preset
    law = arguments.law[0] if arguments.law else "chinchilla"
    columns = {name: options[name] for name in ("n_column", "d_column", "loss_column", "exclude")}
    fitted = fit(law, read_runs(arguments.source, **columns), loss=options["loss"], link=options["link"], seed=options["seed"])
    return bootstrap(fitted, draws=options["bootstrap"], seed=options["seed"])


def _check_format(text: str) -> None:
    """Refuse an unknown --format before any work is done."""
    from analysis.errors import UserError
    from analysis.query import FORMATS

    if text not in FORMATS:
        raise UserError(f"--format {text!r} is unknown; allowed: {', '.join(FORMATS)}")
