"""What `[devices]` makes of a sweep's runs: micro-batches and populations that fit into a device's memory. Known without JAX."""

from collections import Counter
from collections.abc import Hashable

import msgspec

from scaling.config import Devices, RunConfig, TrunkConfig, UserError, parse_quantity
from scaling.memory import USABLE, Memory, training_memory

TOKENS_IN_FLIGHT = 65_536
"""Tokens a step of all lanes together beyond which an `auto` population does not grow: a GPU that is full takes longer for each lane more.

At 2,048 tokens a lane an H200 trained 128 models of .1M to 5M parameters only 1.1 to 1.4 times as fast as 16, each (docs/gpu.md)."""


def lane_key(config: TrunkConfig) -> Hashable:
    """What trunks must share to be lanes of one program: all but seeds, rates, schedule and the order of the text."""
    data = config.data
    return (
        config.model,
        config.optimizer.without_rates,
        config.precision,
        config.lanes,
        config.batch_parts,
        data.batch_tokens,
        data.corpus_hash,
    )


def fit_to_devices(runs: list[RunConfig], devices: Devices, *, members: int | None = None) -> list[RunConfig]:
    """The runs, with a population and micro-batches in their configs (and in their ids) where these are more than one.

    `members` is how many trunks can share a population; None: as many as `runs` has of one shape and role.

    Raises
    ------
    UserError
        A run that does not fit into `devices.memory`, or settings that exclude each other.
    """
    spread = devices.data * devices.parameters
    if devices.population != 1 and spread > 1:
        raise UserError(
            f"devices.population = {devices.population} is for models that leave one device idle, devices.data x devices.parameters = "
            f"{spread} for those too large for one; set one of them to 1"
        )
    if devices.population == "auto" and devices.memory is None:
        raise UserError('devices.population = "auto" needs devices.memory, such as "80G", to know how many models fit')
    counted = Counter((role, lane_key(trunk)) for role, trunk in {(run.role, run.trunk) for run in runs})
    chosen: dict[TrunkConfig, TrunkConfig] = {}
    for run in runs:
        if run.trunk not in chosen:
            chosen[run.trunk] = _fit(run.trunk, devices, members=members or counted[run.role, lane_key(run.trunk)])
    return [msgspec.structs.replace(run, trunk=chosen[run.trunk]) for run in runs]


def _fit(config: TrunkConfig, devices: Devices, *, members: int) -> TrunkConfig:
    windows, spread = config.data.batch_tokens // config.model.sequence_length, devices.data * devices.parameters
    if windows % spread:
        raise UserError(
            f"training.batch_tokens = {config.data.batch_tokens} is {windows} windows, which cannot be split among devices.data x "
            f"devices.parameters = {spread} devices; use a multiple of {spread * config.model.sequence_length}"
        )
    lanes = 1
    if devices.population == "auto":
        lanes = min(_power_of_two(members, up=True), _power_of_two(TOKENS_IN_FLIGHT // config.data.batch_tokens, up=False))
        while lanes > 1 and not _fits(_memory(config, devices, windows=windows // spread, lanes=lanes), devices):
            lanes //= 2
    else:
        lanes = devices.population
    each = windows // spread
    parts = next(
        (n for n in range(1, each + 1) if each % n == 0 and _fits(_memory(config, devices, windows=each // n, lanes=lanes), devices)), 0
    )
    if not parts:
        raise UserError(
            f"devices.memory = {devices.memory}: training d_model = {config.model.d_model} on a single window at a time takes "
            f"{_memory(config, devices, windows=1, lanes=lanes)}, and {USABLE:.0%} of the memory may be planned; "
            "use a smaller model, a shorter model.sequence_length, a smaller devices.population or more devices.parameters"
        )
    return msgspec.structs.replace(
        config,
        population=lanes if lanes > 1 else msgspec.UNSET,
        micro_batches=parts if parts > 1 else msgspec.UNSET,
    )


def memory_of(config: TrunkConfig, devices: Devices) -> Memory:
    """What a device needs for a trunk as it is planned."""
    windows = config.data.batch_tokens // config.model.sequence_length // (devices.data * devices.parameters * config.batch_parts)
    return _memory(config, devices, windows=windows, lanes=config.lanes)


def _memory(config: TrunkConfig, devices: Devices, *, windows: int, lanes: int) -> Memory:
    return training_memory(
        config.model,
        optimizer=config.optimizer.kind,
        precision=config.precision,
        windows=windows,
        lanes=lanes,
        parameter_shards=devices.parameters,
    )


def _fits(memory: Memory, devices: Devices) -> bool:
    return devices.memory is None or memory.total <= USABLE * parse_quantity(devices.memory)


def _power_of_two(number: int, *, up: bool) -> int:
    """The next power of two at or above `number`, or at or below it; at least 1."""
    return 1 << max(0, (number - 1).bit_length() if up else number.bit_length() - 1)
