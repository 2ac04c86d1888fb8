"""Tables of other people's runs, brought to our column names.

A layout is one entry of `LAYOUTS`: the columns by which a file of it is known, what each of our columns is in terms of theirs, and what a
reader must be told. Only rules are kept here, never data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.columns import cells, rename
from analysis.errors import UserError
from analysis.foreign_parts import (
    finish_datablations,
    finish_epoch,
    finish_olmo,
    finish_sldbench,
    finish_steplaw,
    finish_tidy,
    known,
    last_of_each,
    read_datablations,
    read_gadre,
)
from analysis.frames import Frame
from analysis.reading import read_bytes, read_table
from analysis.runs import N_COLUMNS

FIRST_COLUMNS = (
    "run_id trunk_id group status role reason params params_non_embedding params_total tokens tokens_unique epochs flops flops_6nd loss"
    " loss_se bits_per_byte d_model n_layers n_heads d_ff learning_rate batch_tokens steps seed_init seed_data"
).split()
USUAL_NAMES = {
    "tokens_unique": "unique_tokens",
    "learning_rate": "lr",
    "seed_init": "seed",
    "d_ff": "ffn",
    "n_layers": "num_blocks",
    "n_heads": "num_heads",
}
NOT_BEST = "not the best of its N and D"


@dataclass(frozen=True)
class Layout:
    """How a published table becomes ours.

    Attributes
    ----------
    needs : tuple of str
        Columns that every file of this layout has (after `read`).
    columns : dict of str to str
        Our column -> arithmetic on theirs, in the order in which they are computed. Other columns stay as they are.
    notes : tuple of str
        What a reader must know.
    source : str
        Where such files come from.
    read : callable
        File -> table of text cells.
    finish : callable
        Our table -> more notes; it may change the table in place for what arithmetic cannot say.
    """

    needs: tuple[str, ...]
    columns: Mapping[str, str]
    notes: tuple[str, ...]
    source: str
    read: Callable[[Path], Frame] = read_table
    finish: Callable[[Frame], list[str]] = lambda ours: []
    is_json: bool = False


@dataclass(frozen=True)
class Imported:
    """A table with our column names, and what a reader must know about it."""

    layout: str
    table: Frame
    notes: tuple[str, ...]


def import_runs(
    layout: str, path: str | Path, *, columns: Mapping[str, str] | None = None, units: Mapping[str, float] | None = None, best: bool = False
) -> Imported:
    """Read a foreign table and give its columns our names.

    Parameters
    ----------
    layout : str
        A name of `LAYOUTS`, or "auto": the first whose columns the file has.
    columns : dict of str to str, optional
        Our column -> the name of one of theirs, or arithmetic on theirs (``flops / (6*params)``; a name with blanks goes in backticks). A
        name that their table lacks is a column of ours that was computed before. Added to the layout's own rules, or in their place.
    units : dict of str to float, optional
        Factor by which a column is multiplied: of ours where it is computed, else of theirs.
    best : bool
        Give all but the run of least loss in each cell (N, D, unique tokens, group) the role ``tune``, so that it is not fitted.

    Raises
    ------
    UserError
        When the file is not of this layout, a column is missing or an expression is not understood.
    """
    source, extra = Path(path), dict(columns or {})
    if layout == "auto":
        layout = _recognise(source)
    form = get_layout(layout)
    theirs = form.read(source)
    missing = [name for name in form.needs if name not in theirs]
    if missing:
        found = ", ".join(theirs.columns[:20])
        remedy = "see `scaling import list`, or name its columns: scaling import columns FILE --map params=..."
        raise UserError(f"{source}: no {layout} table, it lacks {', '.join(missing)} (found: {found}); {remedy}")
    usual = {name: word for name, word in USUAL_NAMES.items() if word in theirs and name not in theirs and name not in form.columns}
    ours = rename(theirs, {**usual, **form.columns, **extra}, dict(units or {}), source)
    _complete(ours)
    notes = [*form.notes, *form.finish(ours), *_repeated_ids(ours)]
    if best:
        notes.append(_keep_best(ours))
    order = [name for name in FIRST_COLUMNS if name in ours]
    table = ours[[*order, *(name for name in ours if name not in order)]]
    return Imported(layout, table.apply(cells), tuple(notes))


def get_layout(name: str) -> Layout:
    """Look a layout up by its name.

    Raises
    ------
    UserError
        When there is none of that name.
    """
    if name not in LAYOUTS:
        raise UserError(f"import format {name!r} is unknown; allowed: auto, {', '.join(LAYOUTS)} (scaling import list)")
    return LAYOUTS[name]


def _recognise(source: Path) -> str:
    """Name of the first layout that the file fits."""
    is_json = read_bytes(source).lstrip()[:1] in (b"{", b"[")
    found = [] if is_json else read_table(source).columns
    for name, form in LAYOUTS.items():
        if form.is_json != is_json or not form.needs:
            continue
        try:
            if set(form.needs) <= set(form.read(source) if is_json else found):
                return name
        except UserError:
            continue
    raise UserError(f"{source}: of no known layout; name its columns: scaling import columns FILE --map params=... --map tokens=...")


def _complete(ours: Frame) -> None:
    """Give every run an id, a trunk, a status and a role, and C by the usual rule."""
    numbered = pd.Series([f"row-{i + 1}" for i in range(len(ours))], index=ours.index)
    ours["run_id"] = cells(ours["run_id"]).where(lambda ids: ids != "", numbered) if "run_id" in ours else numbered
    for name, value in (("trunk_id", ours["run_id"]), ("status", "done"), ("role", "fit"), ("reason", "")):
        if name not in ours:
            ours[name] = value
    n = _n_column(ours)
    if n is not None and "tokens" in ours and "flops_6nd" not in ours:
        ours["flops_6nd"] = 6 * known(ours, n) * known(ours, "tokens")


def _n_column(ours: Frame) -> str | None:
    """The N that `read_runs` will take: the first of the usual names that holds a value."""
    return next((name for name in N_COLUMNS if name in ours and np.isfinite(known(ours, name)).any()), None)


def _repeated_ids(ours: Frame) -> list[str]:
    """Rows that share a run_id are points of one run: one trunk, each with an id of its own."""
    again = ours["run_id"].duplicated(keep=False)
    if not again.any():
        return []
    count = int(ours["run_id"][again].nunique())
    at = ours.groupby("run_id").cumcount() + 1
    ours["run_id"] = ours["run_id"].where(~again, ours["run_id"] + "#" + at.astype(str))
    return [f"{count} run_ids stood in several rows: each row is a run RUN_ID#k, and rows of one run_id are one trunk"]


def _keep_best(ours: Frame) -> str:
    n = _n_column(ours)
    if n is None or "tokens" not in ours or "loss" not in ours:
        raise UserError("--best needs parameters, tokens and a loss; name them with --map")
    keys = [n, "tokens", *(name for name in ("tokens_unique", "group") if name in ours)]
    running = ours[(ours["status"] == "done") & (ours["role"] == "fit")].assign(loss=lambda table: known(table, "loss"))
    running = running[running["loss"].notna()]
    best = running.groupby([running[name].astype(str) for name in keys])["loss"].idxmin()
    others = running.index.difference(best)
    ours.loc[others, "role"], ours.loc[others, "reason"] = "tune", NOT_BEST
    return f"--best: {len(best)} cells, {len(others)} other runs have role tune and are not fitted"


LAYOUTS: dict[str, Layout] = {
    "epoch": Layout(
        needs=("Model Size", "Training FLOP", "loss"),
        columns={"params": "Model Size", "flops": "Training FLOP", "tokens": "flops / (6*params)", "loss": "loss"},
        notes=("tokens = flops / (6 params) by definition; params count one vocabulary matrix; losses are read off a plot, to 0.015",),
        source="Besiroglu et al. 2024, arXiv:2404.10102: svg_extracted_data.csv",
        finish=finish_epoch,
    ),
    "chinchilla": Layout(
        needs=("C", "N", "D", "loss"),
        columns={"params": "N", "tokens": "D", "flops": "C", "loss": "loss"},
        notes=(),
        source="the chinchilla package (kyo-takano): df.csv",
    ),
    "gadre": Layout(
        needs=("name", "dataset_name", "params", "params_no_embed", "tokens", "c4_val"),
        columns={
            "run_id": "name", "group": "dataset_name", "params": "params", "params_non_embedding": "params_no_embed", "tokens": "tokens",
            "flops": "6*params*tokens", "loss": "c4_val", "loss_se": "(c4_val_high - c4_val_low) / 3.92", "warmup_steps": "warmup",
        },
        notes=("loss = C4 validation (others: loss_...); params with embeddings; one group a training set",),
        source="Gadre et al. 2024, arXiv:2403.08540: models.json",
        read=read_gadre,
        is_json=True,
    ),
    "olmo": Layout(
        needs=("run_id", "group", "size", "length", "rerun", "step", "tokens", "ce_c4_en"),
        columns={"loss": "ce_c4_en", "steps": "step"},
        notes=("loss = C4 validation at the last checkpoint of each run; others: ce_..., bpb_..., acc_... (--loss-column)",),
        source="Bhagia et al. 2024, arXiv:2412.04403: evaluation logs, one row a checkpoint or a run",
        read=last_of_each("run_id", "tokens"),
        finish=finish_olmo,
    ),
    "datablations": Layout(
        needs=("run_id", "params", "tokens", "unique_tokens", "variant"),
        columns={"tokens_unique": "unique_tokens", "epochs": "tokens / unique_tokens", "flops": "6*params*tokens"},
        notes=("params in total; tokens seen with repeats; seeds and deduplicated text are in the column variant",),
        source="Muennighoff et al. 2023, arXiv:2305.16264: val_losses.json",
        read=read_datablations,
        finish=finish_datablations,
        is_json=True,
    ),
    "sldbench": Layout(
        needs=("id", "params", "unique_tokens", "tokens", "loss"),
        columns={"run_id": "id", "tokens_unique": "unique_tokens", "flops": "6*params*tokens"},
        notes=(),
        source="SLDBench's copy of the 182 runs of Muennighoff et al. 2023: data.csv",
        finish=finish_sldbench,
    ),
    "porian": Layout(
        needs=("run_id", "n_as_counted", "param_count", "loss_kind", "tokens", "flops", "loss"),
        columns={"params": "n_as_counted", "params_with_head": "params", "d_model": "width", "n_layers": "depth"},
        notes=("params = N as each group counts it; rows are points of runs, read at the budgets (loss interpolated), not final runs",),
        source="Porian et al. 2024, arXiv:2406.19146: IsoFLOP points",
    ),
    "steplaw": Layout(
        needs=("h", "ffnh", "numh", "numl", "lr", "bs", "ti", "loss", "smooth loss", "exp_name", "D", "N"),
        columns={
            "run_id": "exp_name", "params": "N", "params_non_embedding": "N", "tokens": "D", "flops": "6*N*D", "loss": "smooth loss",
            "loss_raw": "loss", "d_model": "h", "d_ff": "ffnh", "n_heads": "numh", "n_layers": "numl", "steps": "ti", "batch_seqs": "bs",
            "batch_tokens": "bs * 2048",
        },
        notes=("a sweep of learning rate and batch in every cell of N and D: --best keeps the best run; loss = smoothed train loss",),
        source="Li et al. 2025 (Step Law), arXiv:2503.04715: dense_lr_bs_loss.csv",
        finish=finish_steplaw,
    ),
    "clark": Layout(
        needs=("hyper_id", "step", "loss_validation", "router_type", "dense_parameter_count", "total_parameter_count", "flops_per_step"),
        columns={
            "run_id": "hyper_id", "group": "router_type",
            "params": "dense_parameter_count", "params_non_embedding": "dense_parameter_count", "params_total": "total_parameter_count",
            "tokens": "step * 256 * 2048", "flops": "3 * flops_per_step * step",
            "loss": "loss_validation", "steps": "step",
        },
        notes=(
            "last evaluation of each run; batch 256 x 2048 tokens (from the paper); flops = 3 x the published forward count",
            "the paper fits --exclude 'routing_frequency != 0.5 or k != 1 or seed_init != 42'",
        ),
        source="Clark et al. 2022, arXiv:2202.01169: curves.csv.gz",
        read=last_of_each("hyper_id", "step"),
    ),
    "mpl": Layout(
        needs=("run_id", "model", "params", "schedule", "step", "lr", "loss"),
        columns={"group": "model", "steps": "step"},
        notes=("last point of each curve; tokens a step are not published: a law in tokens needs --map 'tokens=step * TOKENS_A_STEP'",),
        source="Luo et al. 2025 (Multi-Power Law), arXiv:2503.12811: loss curves in one table",
        read=last_of_each("run_id", "step"),
    ),
    "nanochat": Layout(
        needs=("param_counting", "flops_inferred", "params_opt", "tokens_opt", "val_bpb_opt"),
        columns={
            "params": "params_opt", "tokens": "tokens_opt", "flops": "flops_inferred", "bits_per_byte": "val_bpb_opt",
            "group": "param_counting",
        },
        notes=("optima of budgets, not runs; losses in bits per byte (--loss-column bits_per_byte); a group is a way of counting params",),
        source="karpathy/nanochat, dev/LOG.md: IsoFLOP optima",
    ),
    "hoffmann": Layout(
        needs=("approach", "params", "tokens", "flops_6nd"),
        columns={"params_opt": "params", "tokens_opt": "tokens", "flops": "flops_6nd", "group": "approach"},
        notes=("compute-optimal sizes without losses: they give exponents of allocation (docs/foreign.md), no loss law",),
        source="Hoffmann et al. 2022, arXiv:2203.15556: tables 3 and A3",
    ),
    "tidy": Layout(
        needs=("run_id", "params", "tokens", "loss"),
        columns={},
        notes=("params = the N of the publication",),
        source="any table with columns run_id, params, tokens, loss and, where known, flops, group, params_non_embedding",
        finish=finish_tidy,
    ),
    "columns": Layout(
        needs=(),
        columns={},
        notes=(),
        source="any CSV: name its columns with --map and their units with --unit",
    ),
}  # fmt: skip
"""Layouts by name, the most particular first (`auto` takes the first that fits)."""
