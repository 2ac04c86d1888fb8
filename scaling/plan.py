"""Sweep -> list of resolved runs, grouped into trunks with their branches; what they cost."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from scaling.accounting import training_flops_per_token
from scaling.config import (
    ModelConfig,
    RunConfig,
    Split,
    Sweep,
    Training,
    TrunkConfig,
    UserError,
    parse_quantity,
)
from scaling.devices import fit_to_devices
from scaling.recipe import branch_step_of, optimizer_of, schedule_config, seed_data_of, small_recipe
from scaling.text_axes import Hashes, TextChoice, only_text, text_choices

__all__ = ["Trunk", "by_preference", "flops_spent", "group_trunks", "optimizer_of", "resolve", "small_recipe", "tune_amounts", "tune_runs"]


@dataclass(frozen=True)
class Trunk:
    """One trunk and its branches, shortest first: the unit of claim and of resuming."""

    trunk_id: str
    config: TrunkConfig
    runs: tuple[RunConfig, ...]
    role: str

    @property
    def trained_steps(self) -> int:
        """Steps trained for all branches: the shared trunk once, each cooldown."""
        return self.runs[-1].branch_step + sum(run.steps - run.branch_step for run in self.runs)

    @property
    def flops(self) -> float:
        """FLOPs of those steps."""
        return float(self.trained_steps * self.config.data.batch_tokens * training_flops_per_token(self.config.model))


def resolve(sweep: Sweep, *, corpus_hash: Hashes) -> list[RunConfig]:
    """Every run of the sweep: the fitted grid first, then the hold-outs.

    Raises
    ------
    UserError
        Impossible shape, too few tokens for one step of trunk and cooldown, or a hold-out that is also fitted.
    """
    grid = sweep.data.tokens
    seeds, widths = sweep.training.seeds, sweep.model.d_model
    texts, runs = text_choices(sweep, corpus_hash), []
    for text in texts:
        for d_model, count in zip(widths, seeds if isinstance(seeds, list) else [seeds] * len(widths), strict=True):
            runs += _grid(sweep, [d_model], grid, sweep.training, range(count), role="fit", text=text)
    known = {run.run_id for run in runs}
    for text in texts:
        for cell in sweep.run:
            found = _grid(sweep, [cell.d_model], [cell.tokens], sweep.training, [cell.seed], role="fit", text=text)
            runs += [run for run in found if run.run_id not in known]
            known |= {run.run_id for run in found}
    if sweep.holdout:
        held = sweep.holdout
        seeds = range(held.first_seed, held.first_seed + held.seeds)
        holdouts = [
            run for text in texts for run in _grid(sweep, held.d_model, held.tokens, sweep.training, seeds, role="holdout", text=text)
        ]
        fitted = {run.trunk_id for run in runs}
        for run in holdouts:
            if run.trunk_id in fitted:
                raise UserError(
                    f"holdout.d_model = {run.trunk.model.d_model} is also in model.d_model: a hold-out is a trunk of its own; "
                    "use a width (larger than all) that is not fitted"
                )
        runs += holdouts
    return fit_to_devices(runs, sweep.devices)


def tune_runs(sweep: Sweep, *, rates: dict[int, list[float]], corpus_hash: Hashes) -> list[RunConfig]:
    """Runs of `[tune]`: every rate of a width (as `rates` lists them) at every tuning batch, seed and amount of data.

    They are scored on the tuning text, never on the held-out one. With trunks the middle amount is where the rate is chosen; the branches
    at the ends show what that choice costs there.
    """
    tune = sweep.tune
    if tune is None:
        return []
    text, runs = only_text(sweep, corpus_hash, what="[tune]"), []
    for d_model, tried in rates.items():
        for batch in tune.batch_tokens or [sweep.training.batch_tokens]:
            for rate in tried:
                fixed = {"learning_rate": rate, "learning_rate_params_power": 0.0, "learning_rate_tokens_power": 0.0, "batch_tokens": batch}
                training = msgspec.structs.replace(sweep.training, **fixed)
                amounts = tune.tokens or tune_amounts(sweep)
                runs += _grid(sweep, [d_model], amounts, training, range(tune.seeds), role="tune", text=text, split="tune")
    return fit_to_devices(runs, sweep.devices, members=len(tune.rates) * tune.seeds)  # not those tried later: ids stay


def tune_amounts(sweep: Sweep) -> list[float]:
    """Tokens at which rates are tried when `tune.tokens` does not say: the ends of the grid, and (with trunks) their geometric mean."""
    amounts = sorted(parse_quantity(value) for value in sweep.data.tokens)
    ends = [amounts[0], amounts[-1]] if len(amounts) > 1 else amounts
    return ends if sweep.training.schedule != "trunk" or len(ends) < 2 else [ends[0], (ends[0] * ends[1]) ** 0.5, ends[1]]


def _grid(
    sweep: Sweep,
    widths: list,
    tokens: Sequence,
    training: Training,
    seeds: Iterable[int],
    *,
    role: str,
    text: TextChoice,
    split: Split | None = None,
) -> list[RunConfig]:
    runs = []
    for d_model in widths:
        model = small_recipe(d_model, grid=sweep.model, vocab_size=text.vocab_size)
        if training.objective != "softmax":
            model = msgspec.structs.replace(model, objective=training.objective)
        for seed in seeds:
            for amount in sorted(parse_quantity(value) for value in tokens):
                steps, branch_step = _steps(training, amount)
                trunk = TrunkConfig(
                    model=model,
                    optimizer=optimizer_of(training, d_model=d_model, model=model, tokens=amount),
                    schedule=schedule_config(training, steps=steps),
                    data=text.data(
                        batch_tokens=training.batch_tokens,
                        evaluation_windows=sweep.evaluation.windows,
                        seed_data=seed_data_of(training, model=model, seed=seed, steps=steps),
                        evaluation_split=split or sweep.evaluation.split,
                    ),
                    seed_init=seed,
                    precision=training.precision,
                )
                if text.has_run(steps * training.batch_tokens):
                    runs.append(RunConfig(trunk=trunk, steps=steps, branch_step=branch_step, role=role))  # pyright: ignore[reportArgumentType]
    if len({run.run_id for run in runs}) < len(runs):
        raise UserError("data.tokens: two amounts round to the same number of steps; space them further apart")
    return runs


def _steps(training: Training, amount: float) -> tuple[int, int]:
    """All steps of a run, and those before its cooldown."""
    steps = round(amount / training.batch_tokens)
    branch_step = branch_step_of(training, steps=steps)
    if not 0 < branch_step <= steps or (branch_step == steps and training.schedule in ("trunk", "wsd")):
        raise UserError(
            f"data.tokens = {amount:g} is {steps} steps of {training.batch_tokens} tokens, too few for a trunk and a "
            f"cooldown; use at least {10 * training.batch_tokens}"
        )
    return steps, branch_step


def group_trunks(runs: list[RunConfig]) -> list[Trunk]:
    """Trunks with their branches (shortest first), dearest trunk first (workers take them `by_preference`)."""
    by_id: dict[str, list[RunConfig]] = {}
    for run in runs:
        by_id.setdefault(run.trunk_id, []).append(run)
    trunks = [
        Trunk(trunk_id=trunk_id, config=members[0].trunk, runs=tuple(sorted(members, key=lambda run: run.steps)), role=members[0].role)
        for trunk_id, members in by_id.items()
    ]
    return sorted(trunks, key=lambda trunk: (trunk.role == "holdout", -trunk.flops, trunk.trunk_id))


def flops_spent(trunk: Trunk) -> dict[str, float]:
    """FLOPs that each branch adds to the bill, by run_id: the trunk from the branch before, and its own cooldown."""
    per_step = trunk.config.data.batch_tokens * training_flops_per_token(trunk.config.model)
    billed, spent = 0, {}
    for run in trunk.runs:
        spent[run.run_id] = float((run.branch_step - billed + run.steps - run.branch_step) * per_step)
        billed = run.branch_step
    return spent


def by_preference(trunks: list[Trunk], *, compiled: Collection[ModelConfig], busy: Collection[ModelConfig]) -> list[Trunk]:
    """The order in which a worker takes trunks, given dearest first: shapes it has compiled first, shapes that another is at last."""
    return sorted(trunks, key=lambda trunk: (trunk.config.model not in compiled, trunk.config.model in busy))
