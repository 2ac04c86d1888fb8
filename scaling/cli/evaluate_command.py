"""`scaling evaluate`: what models of a sweep, or a Hugging Face folder beside them, do on held-out text and tasks."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.cli.numbers import not_negative

if TYPE_CHECKING:
    from scaling.config import RunConfig
    from scaling.corpus import Corpus
    from scaling.language_model import LanguageModel
    from scaling.record import Resolved

EXAMPLE = "scaling evaluate results/quickstart        scaling evaluate GPT2_FOLDER --on results/quickstart"


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    summary = "perplexity, bits per byte, accuracy, BLEU, chrF, ROUGE, repetition ... of models (docs/evaluation.md)"
    made = commands.add_parser("evaluate", help=summary, description=summary, epilog=f"example: {EXAMPLE}")
    made.set_defaults(run=evaluate_command)
    made.add_argument(
        "model", metavar="RESULTS|HF_FOLDER", type=Path, help="a sweep's results folder, or a Hugging Face folder (with --on)"
    )
    made.add_argument("--run", dest="run_ids", metavar="ID", action="append", help="these runs only (default: all that are done)")
    made.add_argument("--on", metavar="RESULTS", type=Path, help="the sweep whose held-out text a Hugging Face folder is evaluated on")
    made.add_argument("--metrics", metavar="A,B", help="only these (default: all)")
    made.add_argument("--tasks", metavar="FILE.jsonl", type=Path, help="prompts with references of your own")
    made.add_argument("--continuations", type=not_negative, default=64, metavar="N", help="held-out texts to continue (default: 64)")
    made.add_argument("--strategy", choices=("greedy", "sample"), default="greedy", help="how answers are decoded (default: greedy)")
    made.add_argument("--seed", type=not_negative, default=0)
    made.add_argument("--canaries", metavar="FILE", type=Path, help="exposure of planted secrets instead (docs/memorisation.md)")
    made.add_argument("--sheet", action="store_true", help="write a blind rating sheet of the two runs named by --run")
    made.add_argument("--ratings", metavar="CSV", type=Path, help="what a rating sheet gave: win rate with its interval")


def evaluate_command(arguments: argparse.Namespace) -> int:
    """Add to evaluation.csv of the results; print the main columns."""
    from scaling.config import UserError
    from scaling.record import Folder, read_resolved

    if arguments.ratings:
        return _print_win_rate(arguments)
    metrics = _metrics(arguments.metrics)
    if Folder(arguments.model).resolved.is_file():
        if arguments.on:
            raise UserError(f"--on is for a Hugging Face folder; {arguments.model} has a text of its own")
        root, resolved = arguments.model, read_resolved(arguments.model)
        chosen = _chosen_runs(root, resolved, arguments.run_ids)
        if arguments.canaries:
            return _write_exposures(arguments, root, resolved, chosen)
        if arguments.sheet:
            return _write_sheet(arguments, root, resolved, chosen)
        table = [row for run in chosen for row in _evaluate_run(arguments, root, resolved, run, metrics)]
    else:
        from scaling.language_model import open_model

        model = open_model(arguments.model)
        if not arguments.on:
            raise UserError(f"{arguments.model}: name the sweep whose held-out text it is evaluated on: --on results/NAME")
        root, resolved = arguments.on, read_resolved(arguments.on)
        table = _evaluate_folder(arguments, model, resolved, metrics)
        _place_beside_the_law(root, resolved, model, table)
    from analysis.query import render
    from scaling.evaluation.table import merge_rows

    merge_rows(root / "evaluation.csv", table)
    sys.stdout.write(render(_wide(table), "table"))
    print(f"in {root / 'evaluation.csv'}{_task_laws(root, resolved)}", file=sys.stderr)
    return 0


def _task_laws(root: Path, resolved: "Resolved") -> str:
    """Write task_laws.csv and its plots where the runs allow it; returns where they are, or why not."""
    import analysis
    from analysis.errors import UserError
    from analysis.plotting import write_figures
    from analysis.task_laws import write_task_laws
    from analysis.task_plots import task_figures

    options = resolved.sweep.fit
    try:
        laws = write_task_laws(root, law=options.forecast_law)
        runs = analysis.read_runs(root, n_column=options.n_column)
        fit = analysis.fit(options.forecast_law, runs, loss=options.loss, link=options.link, seed=options.seed)
    except UserError as error:
        return f"; no task laws: {error}"
    if not laws:
        return "; no task laws: too few runs are evaluated"
    plots = write_figures(task_figures(root, laws, fit), root)
    return f", {root / 'task_laws.csv'}, {len(plots)} plots task_*.png in {root / 'plots'}"


def _wide(table: Sequence[dict[str, Any]]):
    """One row a model, task and domain, one column a metric."""
    import pandas as pd

    frame = pd.DataFrame(table).query("language == 'all'")
    order = list(dict.fromkeys(frame["metric"]))
    return frame.pivot_table(index=["model", "task", "domain"], columns="metric", values="value", sort=False)[order].reset_index()


def _metrics(text: str | None) -> list[str] | None:
    from scaling.config import UserError
    from scaling.evaluation.metrics import METRICS
    from scaling.evaluation.table import HELD_OUT_METRICS

    if text is None:
        return None
    names, known = [name.strip() for name in text.split(",") if name.strip()], [*HELD_OUT_METRICS, *METRICS]
    if not names or (unknown := [name for name in names if name not in known]):
        raise UserError(f"--metrics {', '.join(unknown) if names else 'is empty'}; allowed: {', '.join(known)}")
    return names


def _chosen_runs(root: Path, resolved: "Resolved", run_ids: list[str] | None) -> list["RunConfig"]:
    from scaling.config import UserError
    from scaling.language_model import find_run
    from scaling.record import Folder, read_result

    if run_ids:
        return [find_run(root, resolved, run_id) for run_id in run_ids]
    folder = Folder(root)
    results = {run.run_id: read_result(folder, run.run_id, files=False) for run in resolved.runs}
    done = [run for run in resolved.runs if (found := results[run.run_id]) and found["status"] == "done" and run.role != "tune"]
    if not done:
        raise UserError(f"{root}: no trained run is here (tables without run folders?); `scaling run {root / 'sweep.toml'}` trains them")
    return done


_CORPORA: dict[str, "Corpus"] = {}


def _corpus(resolved: "Resolved", run: "RunConfig") -> "Corpus":
    from scaling.corpus import load

    data = run.trunk.data
    if data.corpus_hash not in _CORPORA:
        _CORPORA[data.corpus_hash] = load(data.corpus, content_hash=data.corpus_hash, tokenizer=data.tokenizer, options=resolved.sweep.text)
    return _CORPORA[data.corpus_hash]


def _evaluate_run(arguments: argparse.Namespace, root: Path, resolved: "Resolved", run: "RunConfig", metrics: list[str] | None):
    from scaling.evaluation.held_out import held_out_scores, windows_by_domain
    from scaling.evaluation.table import HELD_OUT_METRICS, held_out_rows
    from scaling.language_model import load_run

    model = load_run(root, run, resolved)
    print(f"{model.name}", file=sys.stderr, flush=True)
    rows = []
    if metrics is None or set(metrics) & set(HELD_OUT_METRICS):
        for domain, windows in windows_by_domain(_corpus(resolved, run), run):
            rows += held_out_rows(model.name, "run", domain, held_out_scores(model, windows), metrics)
    return rows + _task_rows(arguments, model, resolved, run, metrics, source="run")


def _evaluate_folder(arguments: argparse.Namespace, model: "LanguageModel", resolved: "Resolved", metrics: list[str] | None):
    from scaling.evaluation.held_out import foreign_scores, windows_by_domain
    from scaling.evaluation.table import held_out_rows
    from scaling.language_model import codec_of

    run, rows = resolved.runs[0], []
    for domain, windows in windows_by_domain(_corpus(resolved, run), run):
        found = foreign_scores(model, windows, codec_of(run, resolved))
        rows += held_out_rows(model.name, "folder", domain, found, metrics)
    return rows + _task_rows(arguments, model, resolved, run, metrics, source="folder")


def _place_beside_the_law(root: Path, resolved: "Resolved", model: "LanguageModel", table: list[dict[str, Any]]) -> None:
    """Add the model to models.csv, and draw the law with all of them where it can be fitted."""
    import pandas as pd

    import analysis
    from analysis.errors import UserError
    from analysis.model_points import models_figure
    from analysis.plotting import write_figures
    from scaling.decoder import count_parameters
    from scaling.record import write_atomic

    found = {row["metric"]: row for row in table if row["task"] == "held_out" and row["domain"] == "all"}
    if "loss" not in found:
        return
    path = root / "models.csv"
    old = [row for row in pd.read_csv(path).to_dict("records") if row["model"] != model.name] if path.exists() else []
    new = {"model": model.name, **count_parameters(model.parameters), "loss": found["loss"]["value"], "loss_se": found["loss"]["std_error"]}
    write_atomic(path, pd.DataFrame([*old, new]).to_csv(index=False).encode())
    options = resolved.sweep.fit
    try:
        fit = analysis.fit(options.forecast_law, analysis.read_runs(root, n_column="params_non_embedding"), seed=options.seed)
    except UserError as error:
        print(f"no picture beside the law: {error}", file=sys.stderr)
        return
    (plot,) = write_figures(iter([("models", models_figure(fit, root))]), root)
    print(f"beside the law: {plot}", file=sys.stderr)


def _exercises(arguments: argparse.Namespace, resolved: "Resolved", run: "RunConfig"):
    from scaling.evaluation.held_out import windows_by_domain
    from scaling.evaluation.tasks import continuations, read_exercises
    from scaling.language_model import codec_of

    found = read_exercises(arguments.tasks) if arguments.tasks else []
    if arguments.continuations > 0:
        codec, parts = codec_of(run, resolved), list(windows_by_domain(_corpus(resolved, run), run))
        kinds = parts[1:] or parts  # of each domain when there are any
        for domain, windows in kinds:
            found += continuations(windows, codec, domain=domain, most=max(2, arguments.continuations // len(kinds)))
    return found


def _task_rows(arguments: argparse.Namespace, model: "LanguageModel", resolved: "Resolved", run: "RunConfig", metrics, *, source: str):
    from scaling.evaluation.metrics import METRICS, TASK_METRICS, need_libraries
    from scaling.evaluation.table import task_rows
    from scaling.evaluation.tasks import answers, scores

    exercises = _exercises(arguments, resolved, run)
    if not exercises or (metrics is not None and not set(metrics) & set(METRICS)):
        return []
    need_libraries(name for task in {one.task for one in exercises} for name in TASK_METRICS[task] if metrics is None or name in metrics)
    items = answers(model, exercises, _strategy(arguments), seed=arguments.seed)
    return task_rows(model.name, source, scores(exercises, items, metrics), strategy=arguments.strategy, seed=arguments.seed)


def _strategy(arguments: argparse.Namespace):
    from scaling.decoding.strategies import Greedy, Sample

    return Greedy() if arguments.strategy == "greedy" else Sample()


# ---------------------------------------------------------------- people


def _write_sheet(arguments: argparse.Namespace, root: Path, resolved: "Resolved", runs: Sequence["RunConfig"]) -> int:
    """Print the path of a blind rating sheet."""
    from scaling.config import UserError
    from scaling.evaluation.ratings import write_sheet
    from scaling.evaluation.tasks import answers
    from scaling.language_model import load_run

    if not arguments.run_ids or len(runs) != 2:
        raise UserError("--sheet compares two runs; name them: --run A --run B")
    models = [load_run(root, run, resolved) for run in runs]
    exercises = _exercises(arguments, resolved, runs[0])
    texts = [[item.text for item in answers(model, exercises, _strategy(arguments), seed=arguments.seed)] for model in models]
    page = write_sheet(
        root / "ratings",
        names=(models[0].name, models[1].name),
        prompts=[one.prompt for one in exercises],
        answers=list(zip(*texts, strict=True)),
        seed=arguments.seed,
    )
    print(page)
    print(f"open it, rate, save the CSV; then: scaling evaluate {root} --ratings ratings-....csv", file=sys.stderr)
    return 0


def _print_win_rate(arguments: argparse.Namespace) -> int:
    """Print how often the first run was preferred, with the interval, and keep it as CSV."""
    import pandas as pd

    from analysis.query import render
    from scaling.evaluation.ratings import win_rate
    from scaling.record import write_atomic

    folder = arguments.model / "ratings"
    table = pd.DataFrame([dataclasses.asdict(win_rate(arguments.ratings, folder))])
    path = folder / f"win-rate-{arguments.ratings.stem}.csv"
    write_atomic(path, table.to_csv(index=False).encode())
    sys.stdout.write(render(table, "table"))
    print(f"in {path}", file=sys.stderr)
    return 0


# ---------------------------------------------------------------- planted secrets


def _write_exposures(arguments: argparse.Namespace, root: Path, resolved: "Resolved", runs: Sequence["RunConfig"]) -> int:
    """Write canaries.csv and its plot; print mean exposures."""
    import msgspec
    import pandas as pd

    from analysis.memorisation import exposure_by_size, memorisation_figure
    from analysis.plotting import write_figures
    from analysis.query import render
    from scaling.canaries import exposures, read_canaries
    from scaling.language_model import load_run
    from scaling.record import write_atomic

    canaries, rows = read_canaries(arguments.canaries), []
    for run in runs:
        print(run.run_id, file=sys.stderr, flush=True)
        found = exposures(load_run(root, run, resolved), _corpus(resolved, run), run, canaries, seed=arguments.seed)
        rows += [{"run_id": run.run_id, **msgspec.to_builtins(one)} for one in found]
    write_atomic(root / "canaries.csv", pd.DataFrame(rows).to_csv(index=False).encode())
    (plot,) = write_figures(iter([("memorisation", memorisation_figure(root))]), root)
    sys.stdout.write(render(exposure_by_size(root), "table"))
    print(f"in {root / 'canaries.csv'}, {plot}", file=sys.stderr)
    return 0
