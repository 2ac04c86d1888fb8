"""The compiled training program of a shape: one step, a segment of steps in one loop, a population of models in lanes.

Rates, schedule and text are arguments of the program, so that one compilation serves every run of its shape.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from scaling.architectures import architecture_of
from scaling.config import ModelConfig, OptimizerConfig, Precision, TrunkConfig
from scaling.mesh import place_state, replicated, state_shardings
from scaling.optimizer import make_optimizer, rate_multiplier
from scaling.timings import Stopwatch

LOG_EVERY = 50
"""Steps per segment: one call of the compiled program, one logged point."""

NEVER = (1e9, 2e9)
"""Bounds of a cooldown that does not come: those of the trunk itself."""

State = dict[str, Any]


class Resident(NamedTuple):
    """Text that lies on the device, and where the windows of a segment begin in it: the batches are cut out there.

    tokens : (n,) unsigned; starts : (LOG_EVERY, batch) int32 (with a first axis of lanes in a population)
    """

    tokens: Any
    starts: Any


@dataclass(frozen=True)
class Program:
    """Compiled functions for one shape; shared by all runs that have it.

    Attributes
    ----------
    start : seed -> state
    advance : (state, first, stop, text, rates, schedule) -> (state, losses (LOG_EVERY,), gradient norm)
        Steps `first` to `stop`, exclusive; `text` is (LOG_EVERY, batch, length + 1) tokens, or `Resident`.
    advance_population : (state, first, count, text, rates, schedule) -> (state, losses (lanes, LOG_EVERY), gradient norms (lanes,))
        Each lane takes `count` steps from `first` on, both (lanes,); the others' numbers are no part of its own. State, rates, schedule
        and windows have a first axis of lanes.
    put, take : (states, lane, state) -> states; (states, lane) -> state
        One lane of a population.
    """

    start: Callable[[int], State]
    advance: Callable[..., tuple[State, jax.Array, jax.Array]]
    advance_population: Callable[..., tuple[State, jax.Array, jax.Array]]
    put: Callable[[State, int, State], State]
    take: Callable[[State, int], State]


@lru_cache(maxsize=4)
def program(
    model: ModelConfig, optimizer: OptimizerConfig, precision: Precision = "float32", micro_batches: int = 1, mesh: Mesh | None = None
) -> Program:
    """Build the training program of a shape. The gradient is the mean over `micro_batches` parts of the batch, one after the other.

    With a mesh, the state is split over its devices, and the text must be (`scaling.mesh.place_text`).
    """
    transform, architecture = make_optimizer(optimizer, precision), architecture_of(model, precision)

    def shardings() -> dict[str, Any]:
        parameters = jax.eval_shape(lambda: architecture.initial_parameters(model, 0))
        return state_shardings(mesh, {"parameters": parameters, "optimizer": jax.eval_shape(transform.init, parameters)})

    where = {"parameters": None, "optimizer": None} if mesh is None else shardings()

    def start(seed: int) -> State:
        parameters = place_state(mesh, architecture.initial_parameters(model, seed))
        state = {"parameters": parameters, "optimizer": jax.jit(transform.init, out_shardings=where["optimizer"])(parameters)}
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), state)  # no weak types: they would compile `advance` twice

    def batch_of(text, index):
        if not isinstance(text, Resident):
            return lax.dynamic_index_in_dim(text, index, keepdims=False).astype(jnp.int32)
        starts = lax.dynamic_index_in_dim(text.starts, index, keepdims=False)
        return text.tokens[starts[:, None] + np.arange(model.sequence_length + 1)[None]].astype(jnp.int32)

    def loss_and_gradients(parameters, batch):
        whole = jax.value_and_grad(lambda p, windows: architecture.mean_loss(model, p, windows))
        if micro_batches == 1:
            return whole(parameters, batch)
        parts = batch.reshape(-1, micro_batches, batch.shape[-1]).swapaxes(0, 1)  # of every device's windows a share in each part

        def add(total, part):
            return jax.tree.map(jnp.add, total, whole(parameters, part)), None

        nothing = (jnp.float32(0), jax.tree.map(jnp.zeros_like, parameters))
        return jax.tree.map(lambda leaf: leaf / micro_batches, lax.scan(add, nothing, parts)[0])

    def one_step(step, index, state, text, rates, schedule):
        loss, gradients = loss_and_gradients(state["parameters"], batch_of(text, index))
        directions, optimizer_state = transform.update(gradients, state["optimizer"], state["parameters"])
        multiplier = rate_multiplier(step.astype(jnp.float32), **schedule)

        def new_value(path, value, direction):
            group = architecture.group_of(str(path[-1].key))
            decay = rates["weight_decay"] * value if group == "matrix" else 0.0
            return value - multiplier * rates[group] * (direction + decay)

        parameters = jax.tree_util.tree_map_with_path(new_value, state["parameters"], directions)
        return {"parameters": parameters, "optimizer": optimizer_state}, loss, gradients

    def advance(state, first, stop, text, rates, schedule):
        def body(step, carry):
            state, losses, _ = carry
            state, loss, gradients = one_step(step, step - first, state, text, rates, schedule)
            return state, lax.dynamic_update_index_in_dim(losses, loss, step - first, 0), optax.tree.norm(gradients)

        return lax.fori_loop(first, stop, body, (state, jnp.full((LOG_EVERY,), jnp.nan), jnp.float32(0)))

    def advance_population(states, first, count, text, rates, schedule):
        def lane_step(index, first, count, state, norm, text, rates, schedule):
            new, loss, gradients = one_step(first + index, index, state, text, rates, schedule)
            state = jax.tree.map(lambda new, old: jnp.where(index < count, new, old), new, state)  # a lane that is done stands still
            return state, jnp.where(index < count, loss, jnp.nan), jnp.where(index < count, optax.tree.norm(gradients), norm)

        each = jax.vmap(lane_step, in_axes=(None, 0, 0, 0, 0, Resident(None, 0) if isinstance(text, Resident) else 0, 0, 0))  # pyright: ignore[reportArgumentType]

        def body(index, carry):
            states, losses, norms = carry
            states, loss, norms = each(index, first, count, states, norms, text, rates, schedule)
            return states, lax.dynamic_update_index_in_dim(losses, loss, index, 1), norms

        lanes = len(first)
        return lax.fori_loop(0, jnp.max(count), body, (states, jnp.full((lanes, LOG_EVERY), jnp.nan), jnp.zeros(lanes)))

    donated = () if precision == "float32" else (0,)  # on a GPU the new state takes the place of the old one
    return Program(
        start=start,
        advance=jax.jit(
            advance, donate_argnums=donated, out_shardings=None if mesh is None else (where, replicated(mesh), replicated(mesh))
        ),
        advance_population=jax.jit(advance_population, donate_argnums=donated),
        put=jax.jit(lambda states, lane, state: jax.tree.map(lambda all_, one: all_.at[lane].set(one), states, state), donate_argnums=0),
        take=jax.jit(lambda states, lane: jax.tree.map(lambda leaf: leaf[lane], states)),
    )


# ---------------------------------------------------------------- its arguments


@jax.jit
def multiplier_at(step, schedule):
    """Factor on the rates at a step."""
    return rate_multiplier(step, **schedule)


def program_of(config: TrunkConfig, mesh: Mesh | None = None) -> Program:
    """The program of a trunk; trunks that differ in rates, schedule or seeds share it."""
    return program(config.model, config.optimizer.without_rates, config.precision, config.batch_parts, mesh)


def rates_of(config: TrunkConfig) -> dict[str, np.float32]:
    """Rates by parameter group, as arguments of the program."""
    o = config.optimizer
    rates = {"matrix": o.learning_rate, "embedding": o.embedding_learning_rate, "head": o.head_learning_rate}
    return {name: np.float32(value) for name, value in {**rates, "weight_decay": o.weight_decay}.items()}


def schedule_of(config: TrunkConfig, cooldown: tuple[float, float] = NEVER) -> dict[str, np.float32]:
    """Arguments of `rate_multiplier` beside the step."""
    values = {
        "batch_tokens": config.data.batch_tokens,
        "warmup_steps": config.schedule.warmup_steps,
        "decay_power": config.schedule.decay_power,
        "decay_from_tokens": config.schedule.decay_from_tokens,
        "cooldown_start": cooldown[0],
        "cooldown_end": cooldown[1],
        "cosine": config.schedule.shape == "cosine",
        "linear": config.schedule.shape == "linear",
        "total_steps": config.schedule.total_steps,
        "final_rate": config.schedule.final_rate,
    }
    return {name: np.float32(value) for name, value in values.items()}


def repeated(trees: list[dict[str, np.float32]]) -> dict[str, np.ndarray]:
    """Rates or schedules of several lanes as arguments of one program: (lanes,) each."""
    return {name: np.stack([tree[name] for tree in trees]) for name in trees[0]}


# ---------------------------------------------------------------- compiling ahead


def count_compiled(stopwatch: Stopwatch) -> None:
    """Count in `stopwatch` every program that is compiled from now on (and not found in the shared cache)."""

    def note(event: str, **_: str | int) -> None:
        if event == "/jax/compilation_cache/cache_misses":
            stopwatch.compiled += 1

    jax.monitoring.register_event_listener(note)


def compile_training(config: TrunkConfig, text: Any, mesh: Mesh | None = None) -> State:
    """Compile the program of a trunk, or of its population, by training no step with it; returns what it starts from.

    `text` is of the kind that training will bring. A population starts with the trunk's start in every lane.
    """
    compiled, lanes = program_of(config, mesh), config.lanes
    state, rates, schedule, none = compiled.start(config.seed_init), rates_of(config), schedule_of(config), np.zeros(lanes, np.int32)
    multiplier_at(np.float32(0), schedule)
    if lanes == 1:
        return jax.block_until_ready(compiled.advance(state, 0, 0, text, rates, schedule))[0]
    states = jax.jit(lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * lanes), tree))(state)
    states, *_ = compiled.advance_population(states, none, none, text, repeated([rates] * lanes), repeated([schedule] * lanes))
    return jax.block_until_ready(states)
