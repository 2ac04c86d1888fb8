"""Runs that a sweep could train next, as a pool of `analysis.design`: cells with their costs on shared trunks."""

import math
from collections.abc import Collection

import msgspec
import numpy as np

from analysis.design import Pool
from analysis.surface import Places
from scaling.accounting import count_parameters, training_flops_per_token
from scaling.config import Cell, RunConfig, Sweep, UserError, parse_quantity
from scaling.plan import resolve
from scaling.recipe import small_recipe
from scaling.record import Folder, Resolved, path_step
from scaling.text_axes import only_text

WIDTH_STEP, TOKENS_STEP = 1.3, 1.6  # spacing of cells beyond those of the sweep
MOST_WIDTHS, MOST_LENGTHS = 12, 12


def params_of(run: RunConfig, n_column: str) -> float:
    """Return the parameter count that is a law's N."""
    group = n_column.removeprefix("params_")
    counts = count_parameters(run.trunk.model)
    if not hasattr(counts, group):
        raise UserError(f"fit.n_column = {n_column!r} is no count of a sweep's models; use params_non_embedding or params_total")
    return float(getattr(counts, group))


def pool_of(runs: list[RunConfig], folder: Folder, *, n_column: str, done: Collection[str] = ()) -> Pool:
    """Pool of the runs that are not done; a trunk goes on from its last saved state before the branch."""
    runs = [run for run in runs if run.run_id not in done and not folder.run(run.run_id).exists()]
    per_step = np.array([run.trunk.data.batch_tokens * training_flops_per_token(run.trunk.model) for run in runs], dtype=np.float64)
    names = {trunk_id: number for number, trunk_id in enumerate(dict.fromkeys(run.trunk_id for run in runs))}
    return Pool(
        run_id=np.array([run.run_id for run in runs]),
        places=Places.of(np.array([params_of(run, n_column) for run in runs]), np.array([float(run.tokens) for run in runs])),
        own=per_step * [run.steps - run.branch_step for run in runs],
        trunk=np.array([names[run.trunk_id] for run in runs], dtype=int),
        along=per_step * [run.branch_step for run in runs],
        saved=per_step * [_saved_step(folder, run) for run in runs],
    )


def _saved_step(folder: Folder, run: RunConfig) -> int:
    """Last saved state of the run's trunk that it can leave from, or 0."""
    saved = (path_step(path) for path in folder.trunk(run.trunk_id).glob("state-*.safetensors"))
    return max((step for step in saved if step <= run.branch_step), default=0)


def around(resolved: Resolved, *, params: float, tokens: float, budget: float) -> list[RunConfig]:
    """Return the sweep's own cells, cells between them and the target, and one seed more of each: what a budget can pay for at all."""
    sweep = resolved.sweep
    only_text(sweep, resolved.corpus_hash, what="scaling suggest")
    lengths = sorted({parse_quantity(value) for value in [*sweep.data.tokens, *(cell.tokens for cell in sweep.run)]})
    while lengths[-1] * TOKENS_STEP < tokens and len(lengths) < MOST_LENGTHS:
        lengths.append(lengths[-1] * TOKENS_STEP)
    widths = sorted({*sweep.model.d_model, *(cell.d_model for cell in sweep.run)})
    while len(widths) < MOST_WIDTHS:
        wider = 8 * max(math.ceil(widths[-1] * WIDTH_STEP / 8), widths[-1] // 8 + 1)
        try:
            model = small_recipe(wider, grid=sweep.model, vocab_size=256)
        except UserError:  # a fixed head dimension does not divide it
            break
        if count_parameters(model).non_embedding > params:
            break
        widths.append(wider)
    seeds = sweep.training.seeds if isinstance(sweep.training.seeds, int) else max(sweep.training.seeds)
    cells = [Cell(width, float(length), seed) for width in widths for length in lengths for seed in range(seeds + 1)]
    known = resolve(msgspec.structs.replace(sweep, run=cells, holdout=None), corpus_hash=resolved.corpus_hash)
    return [run for run in known if run.tokens * training_flops_per_token(run.trunk.model) <= budget * 1.001 / _least_share(sweep)]


def _least_share(sweep: Sweep) -> float:
    """Share of a run that is its own where its trunk is there already."""
    return sweep.training.cooldown_fraction if sweep.training.schedule == "trunk" else 1.0


def cells_toml(runs: list[RunConfig]) -> str:
    """Return the `[[run]]` tables of a sweep file."""
    lines = []
    for run in runs:
        lines += ["[[run]]", f"d_model = {run.trunk.model.d_model}", f"tokens = {run.tokens}", f"seed = {run.trunk.seed_init}", ""]
    return "\n".join(lines)
