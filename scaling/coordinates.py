"""Coordinate check: does one rate move every width alike? (Yang et al. 2021, appendix D; Everett et al. 2024).

Models of several widths and one depth take the same few steps with the recipe's rates; how far each part of the forward pass moved from
where it started is compared over widths. Under a parametrisation whose rate transfers, the root mean square of the change does not depend
on the width: the slope of its logarithm against that of the width is near 0. A slope of 1 says that the rate must fall as 1 / width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from scaling.config import ModelConfig, Sweep, UserError
from scaling.corpus import Corpus
from scaling.mixture import training_windows
from scaling.model import Transformer, rms_norm
from scaling.plan import resolve
from scaling.program import LOG_EVERY, program_of, rates_of, schedule_of

if TYPE_CHECKING:  # 60 ms of a worker's start
    from jaxtyping import Array, Float, Int

PARTS = ("embedding", "attention", "mlp", "residual stream", "logits")


@dataclass(frozen=True)
class Change:
    """How far a part of one width moved in `steps` steps: root mean square over tokens and features, mean over seeds."""

    part: str
    d_model: int
    steps: int
    change: float


def activations(config: ModelConfig, parameters: dict, tokens: Int[Array, "b t"]) -> dict[str, Float[Array, "*shape"]]:
    """What each part gives: embeddings, outputs of attention and MLP (all blocks), the last residual stream, logits."""
    model = Transformer(config, parameters)
    x = rms_norm(model.embedding[...][tokens])
    found: dict[str, list] = {"embedding": [x], "attention": [], "mlp": []}
    for block in model.blocks:
        attended = block.attention(rms_norm(x))
        after = block(x)
        found["attention"].append(attended)
        found["mlp"].append(after - x - attended)
        x = after
    stacked = {name: jnp.stack(values) for name, values in found.items()}
    return {**stacked, "residual stream": x, "logits": rms_norm(x) @ model.head[...].T}


def coordinate_check(sweep: Sweep, corpus: Corpus, *, steps: int = 10, layers: int = 2, seeds: int = 3) -> list[Change]:
    """Train every width of the sweep for a few steps at one depth; how far every part moved.

    The warm-up is left out: it would hide the rates that are checked.

    Raises
    ------
    UserError
        With fewer than two widths, a registered model, or more steps than one segment has.
    """
    if sweep.model.kind != "transformer":
        raise UserError(f"coordinates: model.kind = `{sweep.model.kind}` is registered; only the parts of `transformer` are known")
    if len(sweep.model.d_model) < 2:
        raise UserError("coordinates: model.d_model has one width; a slope over widths needs at least two")
    if not 1 <= steps <= LOG_EVERY:
        raise UserError(f"coordinates: --steps {steps} is not allowed; 1 to {LOG_EVERY}")
    fixed = msgspec.structs.replace(
        sweep,
        model=msgspec.structs.replace(sweep.model, n_layers=layers),
        training=msgspec.structs.replace(sweep.training, warmup_steps=0, data_order="shared", seeds=seeds),
        holdout=None,
    )
    trunks = {run.trunk_id: run.trunk for run in resolve(fixed, corpus_hash=corpus.content_hash)}
    moved: dict[tuple[str, int], list[float]] = {}
    for trunk in trunks.values():
        model, length = trunk.model, trunk.model.sequence_length
        batch = trunk.data.batch_tokens // length
        found = training_windows(corpus, trunk.data, seed=trunk.data.seed_data, first=0, count=LOG_EVERY * batch, length=length)
        windows = found.reshape(LOG_EVERY, batch, length + 1)
        program = program_of(trunk)
        start = program.start(trunk.seed_init)
        probe = jnp.asarray(windows[-1, :, :-1], jnp.int32)
        look = jax.jit(lambda parameters, tokens, model=model: activations(model, parameters, tokens))
        before = look(start["parameters"], probe)
        state, *_ = program.advance(start, 0, steps, windows, rates_of(trunk), schedule_of(trunk))
        after = look(state["parameters"], probe)
        for part in PARTS:
            change = float(jnp.sqrt(jnp.mean(jnp.square(after[part] - before[part]))))
            moved.setdefault((part, model.d_model), []).append(change)
    return [Change(part, width, steps, float(np.mean(values))) for (part, width), values in sorted(moved.items())]


def slopes(changes: list[Change]) -> dict[str, float]:
    """Slope of log change against log width, by part; 0 where the rate transfers.

    >>> slopes([Change("mlp", 16, 10, 0.5), Change("mlp", 64, 10, 0.5)])
    {'mlp': 0.0}
    """
    found = {}
    for part in dict.fromkeys(change.part for change in changes):
        rows = [change for change in changes if change.part == part]
        x, y = ([math.log(getattr(row, name)) for row in rows] for name in ("d_model", "change"))
        found[part] = float(np.polyfit(x, y, 1)[0]) + 0.0
    return found
