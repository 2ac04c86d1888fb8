"""Sweep -> list of resolved runs, grouped into trunks with their branches; what they cost.

The recipe lives here: one dial (`d_model`) decides shape and rates. Its numbers were measured on longer runs of a prototype, not yet here;
every one of them can be overridden in the sweep file.
"""

from collections.abc import Collection
from dataclasses import dataclass

from scaling.accounting import training_flops_per_token
from scaling.config import (
    ModelConfig,
    ModelGrid,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    Sweep,
    Training,
    TrunkConfig,
    UserError,
    parse_quantity,
)
from scaling.text_axes import Hashes, TextChoice, text_choices


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


def small_recipe(d_model: int, *, grid: ModelGrid, vocab_size: int) -> ModelConfig:
    """Width -> shape: 3 layers, d_ff = 4 d, head dimension 8 * 2^k with 3-4 heads (2 heads at width 16)."""
    head_dim = grid.head_dim or _head_dim(d_model)
    if d_model % head_dim:
        raise UserError(
            f"model.d_model = {d_model} is not divisible by the head dimension {head_dim}; "
            f"use a multiple of {head_dim} or set model.head_dim to a divisor of every width"
        )
    if head_dim % 2:
        raise UserError(f"model.head_dim = {head_dim} is odd; rotary positions need an even head dimension")
    return ModelConfig(
        d_model=d_model,
        n_layers=grid.n_layers or 3,
        n_heads=d_model // head_dim,
        d_ff=grid.d_ff or 4 * d_model,
        vocab_size=vocab_size,
        sequence_length=grid.sequence_length,
        rope_base=grid.rope_base,
    )


def _head_dim(d_model: int) -> int:
    head_dim = 8
    while d_model >= 6 * head_dim:
        head_dim *= 2
    return head_dim


def optimizer_of(training: Training, *, d_model: int) -> OptimizerConfig:
    """Rates by parameter group: Muon's and the embedding's do not depend on the width, the head's falls as 32 / d."""
    return OptimizerConfig(
        learning_rate=training.learning_rate,
        embedding_learning_rate=training.embedding_learning_rate,
        head_learning_rate=training.head_learning_rate * 32 / d_model,
        momentum=training.momentum,
        beta1=training.beta1,
        beta2=training.beta2,
        weight_decay=training.weight_decay,
    )


def resolve(sweep: Sweep, *, corpus_hash: Hashes) -> list[RunConfig]:
    """Every run of the sweep: the fitted grid first, then the hold-outs.

    Raises
    ------
    UserError
        Impossible shape, too few tokens for one step of trunk and cooldown, or a hold-out that is also fitted.
    """
    texts = text_choices(sweep, corpus_hash)
    runs = _grids(sweep, sweep.model.d_model, sweep.data.tokens, sweep.training.seeds, role="fit", texts=texts)
    if sweep.holdout:
        held = sweep.holdout
        holdouts = _grids(sweep, held.d_model, held.tokens, held.seeds, role="holdout", texts=texts)
        fitted = {run.trunk_id for run in runs}
        for run in holdouts:
            if run.trunk_id in fitted:
                raise UserError(
                    f"holdout.d_model = {run.trunk.model.d_model} is also in model.d_model: a hold-out is a trunk of its own; "
                    "use a width (larger than all) that is not fitted"
                )
        runs += holdouts
    return runs


def _grids(sweep: Sweep, widths: list, tokens: list, seeds: int, *, role: str, texts: list[TextChoice]) -> list[RunConfig]:
    return [run for text in texts for run in _grid(sweep, widths, tokens, seeds, role=role, text=text)]


def _grid(sweep: Sweep, widths: list, tokens: list, seeds: int, *, role: str, text: TextChoice) -> list[RunConfig]:
    training = sweep.training
    runs = []
    for d_model in widths:
        model = small_recipe(d_model, grid=sweep.model, vocab_size=text.vocab_size)
        for seed in range(seeds):
            trunk = TrunkConfig(
                model=model,
                optimizer=optimizer_of(training, d_model=d_model),
                schedule=ScheduleConfig(
                    warmup_steps=training.warmup_steps,
                    decay_power=training.learning_rate_decay_power,
                    decay_from_tokens=round(parse_quantity(training.learning_rate_decay_from)),
                ),
                data=text.data(batch_tokens=training.batch_tokens, evaluation_windows=sweep.evaluation.windows, seed_data=seed),
                seed_init=seed,
            )
            for amount in sorted(parse_quantity(value) for value in tokens):
                steps = round(amount / training.batch_tokens)
                branch_step = round(steps * (1 - training.cooldown_fraction))
                if not 0 < branch_step < steps:
                    raise UserError(
                        f"data.tokens = {amount:g} is {steps} steps of {training.batch_tokens} tokens, too few for a trunk and a "
                        f"cooldown; use at least {10 * training.batch_tokens}"
                    )
                if text.has_run(steps * training.batch_tokens):
                    runs.append(RunConfig(trunk=trunk, steps=steps, branch_step=branch_step, role=role))  # pyright: ignore[reportArgumentType]
    if len({run.run_id for run in runs}) < len(runs):
        raise UserError("data.tokens: two amounts round to the same number of steps; space them further apart")
    return runs


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
