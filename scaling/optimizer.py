"""Optimizer directions by parameter group (Optax), and the rate schedule of trunk and cooldown.

Matrices: Muon (Jordan et al. 2024), momentum orthogonalised by a few Newton-Schulz steps. Embedding, head and gains: Adam.
The chain gives *directions*; `train` multiplies each by its group's rate and the schedule, so that one compilation serves every rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import DTypeLike

from scaling.config import OptimizerConfig, Precision
from scaling.registry import OPTIMIZERS, optimizer_maker

if TYPE_CHECKING:  # 60 ms of a worker's start
    from jaxtyping import Array, Float

GROUPS = {"embedding": "embedding", "head": "head", "query_gain": "embedding"}
"""Parameter name -> rate group; every other parameter is a `matrix`."""

NEWTON_SCHULZ = ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037))
"""Coefficients of the odd quintic, one triple a step."""


def orthogonalize(x: Float[Array, "k m n"]) -> Float[Array, "k m n"]:
    """Push the singular values of each (m, n) matrix, m <= n, towards 1: x <- a x + (b A + c A^2) x with A = x x^T.

    The products are in the dtype of `x`; bfloat16 is enough (Jordan et al. 2024).
    """
    x = x / (jnp.sqrt(jnp.sum(x * x, (1, 2), keepdims=True)) + 1e-7)
    for a, b, c in NEWTON_SCHULZ:
        gram = lax.optimization_barrier(jnp.einsum("kmn,kpn->kmp", x, x))
        square = lax.optimization_barrier(jnp.einsum("kmp,kpn->kmn", gram, gram))
        x = a * x + lax.optimization_barrier(jnp.einsum("kmp,kpn->kmn", b * gram + c * square, x))
    return x


def _orthogonalize_blocks(momenta: dict, dtype: DTypeLike) -> dict:
    """Orthogonalise all matrices, those of one shape in one batch; q, k and v apart; the update of `up` grows by sqrt(d_ff / d)."""
    blocks = momenta["blocks"]
    order = sorted(blocks)
    d = blocks[order[0]]["output"].shape[0]
    f = blocks[order[0]]["up"].shape[0]
    square = [part for i in order for part in (*jnp.split(blocks[i]["query_key_value"], 3), blocks[i]["output"])]
    wide = [part for i in order for part in (blocks[i]["up"].T, blocks[i]["down"])]
    square, wide = orthogonalize(jnp.stack(square).astype(dtype)), _orthogonalize_wide(jnp.stack(wide).astype(dtype))
    square, wide = square.astype(jnp.float32), wide.astype(jnp.float32)
    out = {}
    for position, i in enumerate(order):
        query_key_value = square[4 * position : 4 * position + 3].reshape(3 * d, d)
        up, down = wide[2 * position].T * (f / d) ** 0.5, wide[2 * position + 1]
        out[i] = {**blocks[i], "query_key_value": query_key_value, "output": square[4 * position + 3], "up": up, "down": down}
    return {**momenta, "blocks": out}


def _orthogonalize_wide(x: Float[Array, "k m n"]) -> Float[Array, "k m n"]:
    return orthogonalize(x) if x.shape[1] <= x.shape[2] else orthogonalize(x.swapaxes(1, 2)).swapaxes(1, 2)


class MuonState(NamedTuple):
    """Exponential average of the gradients."""

    momentum: optax.Updates


def scale_by_muon(momentum: float, dtype: DTypeLike = jnp.float32) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised; on the matrices of the blocks (masked leaves of other groups pass untouched)."""

    def init(parameters):
        return MuonState(momentum=jax.tree.map(jnp.zeros_like, parameters))

    def update(gradients, state, parameters=None):
        del parameters
        average = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, state.momentum, gradients)
        nesterov = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, average, gradients)
        return _orthogonalize_blocks(nesterov, dtype), MuonState(momentum=average)

    return optax.GradientTransformation(init, update)


def group_of(path: tuple) -> str:
    """Rate group of a parameter, from the last name in its tree path."""
    return GROUPS.get(str(path[-1].key), "matrix")


def make_optimizer(config: OptimizerConfig, precision: Precision = "float32") -> optax.GradientTransformation:
    """Directions (to be subtracted): Muon (or, for adamw, Adam) for the group `matrix`, Adam for the rest; or a registered optimizer's."""
    if config.kind not in OPTIMIZERS:
        return optimizer_maker(config.kind)(config)
    adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=1e-10)
    muon = scale_by_muon(config.momentum, jnp.dtype(precision))
    return optax.partition(
        {
            "matrix": muon if config.kind == "muon" else adam,
            "embedding": adam,
            "head": adam,
        },
        lambda parameters: jax.tree_util.tree_map_with_path(lambda path, _: group_of(path), parameters),
    )


def rate_multiplier(
    step,
    *,
    batch_tokens,
    warmup_steps,
    decay_power,
    decay_from_tokens,
    cooldown_start,
    cooldown_end,
    cosine=0.0,
    linear=0.0,
    total_steps=0.0,
    final_rate=0.0,
):
    """Factor on every rate at `step` (0-based): warm-up x trunk decay x cooldown x whole-run fall.

    warm-up min(1, (t + 1) / w); trunk min(1, (tokens / decay_from)^-p) with tokens counted after the step; cooldown 1 - sqrt(fraction),
    where fraction runs from 0 at `cooldown_start` to 1 just past `cooldown_end` (Haegele et al. 2024). With `cosine` or `linear` = 1 the
    rate falls from the end of the warm-up to `final_rate` of the peak just past `total_steps` (Loshchilov & Hutter 2017).

    >>> float(rate_multiplier(99, batch_tokens=512, warmup_steps=50, decay_power=0.0, decay_from_tokens=1.0,
    ...                       cooldown_start=1e9, cooldown_end=2e9))
    1.0
    """
    warmup = jnp.minimum(1.0, (step + 1) / jnp.maximum(warmup_steps, 1))
    decay = jnp.minimum(1.0, ((step + 1) * batch_tokens / decay_from_tokens) ** -decay_power)
    fraction = jnp.clip((step - cooldown_start + 1) / (cooldown_end - cooldown_start + 1), 0.0, 1.0)
    progress = jnp.clip((step + 1 - warmup_steps) / jnp.maximum(total_steps + 1 - warmup_steps, 1), 0.0, 1.0)
    fallen = cosine * (1 - jnp.cos(jnp.pi * progress)) / 2 + linear * progress
    return warmup * decay * (1 - jnp.sqrt(fraction)) * (1 - (1 - final_rate) * fallen)
