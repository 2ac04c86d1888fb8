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
    if devices.population not in ("auto", 1) and devices.spread > 1:
        raise UserError(
            f"devices.population = {devices.population} is for models that leave one device idle, devices.data x devices.parameters = "
            f"{devices.spread} for those too large for one; set one of them to 1"
        )
    counted = Counter((role, lane_key(trunk)) for role, trunk in {(run.role, run.trunk) for run in runs})
    chosen: dict[TrunkConfig, TrunkConfig] = {}
    for run in runs:
        if run.trunk not in chosen:
            chosen[run.trunk] = _fit(run.trunk, devices, members=members or counted[run.role, lane_key(run.trunk)])
    return [msgspec.structs.replace(run, trunk=chosen[run.trunk]) for run in runs]


def _fit(config: TrunkConfig, devices: Devices, *, members: int) -> TrunkConfig:
    windows = config.data.batch_tokens // config.model.sequence_length
    if windows % devices.spread:
        raise UserError(
            f"training.batch_tokens = {config.data.batch_tokens} is {windows} windows, which cannot be split among devices.data x "
            f"devices.parameters = {devices.spread} devices; use a multiple of {devices.spread * config.model.sequence_length}"
        )
    each = windows // devices.spread
    lanes = _lanes(config, devices, windows=each, members=members) if devices.population == "auto" else devices.population
    parts = next((n for n in range(1, each + 1) if each % n == 0 and _fits(config, devices, windows=each // n, lanes=lanes)), 0)
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


def _lanes(config: TrunkConfig, devices: Devices, *, windows: int, members: int) -> int:
    """Size of an `auto` population: a power of two, for as many trunks as there are, as long as they leave a device idle and fit."""
    if devices.memory is None or devices.spread > 1:
        return 1
    lanes = min(_power_of_two(members, up=True), _power_of_two(TOKENS_IN_FLIGHT // config.data.batch_tokens, up=False))
    while lanes > 1 and not _fits(config, devices, windows=windows, lanes=lanes):
        lanes //= 2
    return lanes


def memory_of(config: TrunkConfig, devices: Devices) -> Memory:
    """What a device needs for a trunk as it is planned."""
    windows = config.data.batch_tokens // config.model.sequence_length // (devices.spread * config.batch_parts)
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


def _fits(config: TrunkConfig, devices: Devices, *, windows: int, lanes: int) -> bool:
    memory = _memory(config, devices, windows=windows, lanes=lanes)
    return devices.memory is None or memory.total <= USABLE * parse_quantity(devices.memory)


def _power_of_two(number: int, *, up: bool) -> int:
    """The next power of two at or above `number`, or at or below it; at least 1."""
    return 1 << max(0, (number - 1).bit_length() if up else number.bit_length() - 1)
