"""The recipe: one dial, the width, decides shape, rates, batch and schedule. Every number can be overridden in the sweep file.

Where the numbers come from, and what was tried and dropped: docs/recipe.md.
"""

import hashlib

from scaling.accounting import count_parameters
from scaling.config import (
    ModelConfig,
    ModelGrid,
    OptimizerConfig,
    ScheduleConfig,
    Training,
    UserError,
    parse_quantity,
)
from scaling.registry import MODELS, registered_options

HEAD_RATE_WIDTH = 32
"""Width at which `head_learning_rate` holds; it falls as 1 / width, so that logits move alike at every width (`scaling coordinates`)."""

MATRIX_RATE = {"muon": 0.025, "adamw": 0.01}
"""Rate of the matrices at `learning_rate_params` parameters, by optimizer. Muon's is tuned (sweeps/rate_transfer.toml), AdamW's a guess."""

PARAMS_POWER = {"muon": 0.29, "adamw": 1 / 3}
"""rate ~ N^-power. Muon's is tuned: its updates need no change with the width, but the depth grows with it, so N^-0.29 is about 1 / depth.
Adam's entries do not shrink with the width, so its rate must (1 / width, and width ~ N^(1/3))."""

TRUNK_SHAPES = ("trunk", "wsd")
"""Schedules with a cooldown; on them the rate of the trunk falls as a power of the tokens seen."""


def small_recipe(d_model: int, *, grid: ModelGrid, vocab_size: int) -> ModelConfig:
    """Width -> shape: width / 8 layers, d_ff = 4 d, head dimension 8 * 2^k with 3-5 heads (2 at width 16)."""
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
        n_layers=grid.n_layers or max(1, int(d_model / grid.width_per_layer + 0.5)),
        n_heads=d_model // head_dim,
        d_ff=grid.d_ff or 4 * d_model,
        vocab_size=vocab_size,
        sequence_length=grid.sequence_length,
        rope_base=grid.rope_base,
        kind=grid.kind,
        options=registered_options(grid.kind, grid.options, what="model.kind"),
    )


def _head_dim(d_model: int) -> int:
    head_dim = 8
    while d_model >= 6 * head_dim:
        head_dim *= 2
    return head_dim


def matrix_rate(training: Training, *, params: float, tokens: float) -> float:
    """Peak rate of the matrices: learning_rate (N / learning_rate_params)^-p (D / learning_rate_tokens)^-q, N non-embedding."""
    rate = training.learning_rate
    if rate is None:
        rate = MATRIX_RATE.get(training.optimizer, MATRIX_RATE["adamw"])
    power = training.learning_rate_params_power
    if power is None:
        power = PARAMS_POWER.get(training.optimizer, 0.0)
    by_size = (params / parse_quantity(training.learning_rate_params)) ** -power
    return rate * by_size * (tokens / parse_quantity(training.learning_rate_tokens)) ** -training.learning_rate_tokens_power


def optimizer_of(training: Training, *, d_model: int, model: ModelConfig | None = None, tokens: float | None = None) -> OptimizerConfig:
    """Rates by parameter group: the matrices' by `matrix_rate`, the embedding's the same at every width, the head's as 32 / d.

    Without `model` (or `tokens`) the rate of the matrices is that at `learning_rate_params` (`learning_rate_tokens`).
    """
    if training.optimizer == "muon" and model is not None and model.kind not in MODELS:
        raise UserError(
            f'model.kind = `{model.kind}` is registered and Muon knows the blocks of `transformer` only; set training.optimizer = "adamw"'
        )
    params = count_parameters(model).non_embedding if model else parse_quantity(training.learning_rate_params)
    return OptimizerConfig(
        learning_rate=matrix_rate(training, params=params, tokens=tokens or parse_quantity(training.learning_rate_tokens)),
        embedding_learning_rate=training.embedding_learning_rate,
        head_learning_rate=training.head_learning_rate * HEAD_RATE_WIDTH / d_model,
        momentum=training.momentum,
        beta1=training.beta1,
        beta2=training.beta2,
        weight_decay=training.weight_decay,
        kind=training.optimizer,
        options=registered_options(training.optimizer, training.options, what="training.optimizer"),
    )


def schedule_config(training: Training, *, steps: int) -> ScheduleConfig:
    """Schedule of a trunk, or of an independent run of `steps`; only schedules with a cooldown decay along the trunk."""
    independent = training.schedule != "trunk"
    falling = training.schedule in TRUNK_SHAPES
    return ScheduleConfig(
        warmup_steps=training.warmup_steps,
        decay_power=training.learning_rate_decay_power if falling else 0.0,
        decay_from_tokens=round(parse_quantity(training.learning_rate_decay_from)),
        shape=training.schedule,
        total_steps=steps if independent else 0,
        final_rate=0.0 if falling or training.schedule == "constant" else training.final_rate,
    )


def branch_step_of(training: Training, *, steps: int) -> int:
    """Step at which a run leaves its trunk: before its cooldown, or at its end when it has none."""
    return round(steps * (1 - training.cooldown_fraction)) if training.schedule in TRUNK_SHAPES else steps


def seed_data_of(training: Training, *, model: ModelConfig, seed: int, steps: int) -> int:
    """Seed of the data order: with `data_order = "own"` one for every trunk, so that no two trunks share the noise of a chunk.

    It depends on shape, seed and (for independent runs) steps only, so that an extended sweep keeps the orders it had.
    """
    if training.data_order == "shared":
        return seed
    length = steps if training.schedule != "trunk" else 0
    digest = hashlib.sha256(f"{model.kind} {model.d_model} {model.n_layers} {seed} {length}".encode())
    return int.from_bytes(digest.digest()[:3], "big")
