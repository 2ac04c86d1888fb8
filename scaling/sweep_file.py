"""Reading a sweep file: TOML -> a checked `Sweep`; what is wrong is said in one line."""

import codecs
import math
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from scaling.budget_limits import limit_of
from scaling.config import (
    Budget,
    Cell,
    DataGrid,
    Devices,
    Evaluation,
    FitOptions,
    Forecast,
    Holdout,
    ModelGrid,
    Records,
    Struct,
    Sweep,
    TextOptions,
    Training,
    Tune,
    UserError,
    parse_quantity,
)

MOST_RUNS = 100_000
"""Runs that a sweep may have: more is a slip of the pen, and a plan of it would fill the memory."""


PACKAGED = Path(__file__).with_name("sweeps")
"""The sweeps that ship with the package: a link to sweeps/ in the repository, a folder of copies in an installed wheel."""


def packaged_sweeps() -> dict[str, Path]:
    """Return the sweeps that ship with the package, by name."""
    return {path.stem: path for path in sorted(PACKAGED.glob("*.toml"))}


def find_sweep(name: str | Path) -> Path:
    """Return the file of a path, else of a packaged sweep of that name.

    Raises
    ------
    UserError
        If there is neither; it says which are packaged.
    """
    if os.path.isfile(name):  # False also where the name is too long for a path
        return Path(name)
    packaged = packaged_sweeps()
    if str(name) not in packaged:
        raise UserError(f"{name}: no such sweep file, and no packaged sweep of that name; packaged: {', '.join(packaged)}")
    return packaged[str(name)]


def load_sweep(path: str | Path) -> Sweep:
    """Read and check a sweep file, or a packaged sweep by its name.

    Raises
    ------
    UserError
        One line: the file, the key, what is allowed, what to do.
    """
    path = find_sweep(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); a sweep is a TOML text file") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}; see docs/sweeps.md for an annotated example") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; see docs/sweeps.md for an annotated example") from None
    try:
        sweep = msgspec.convert(data, Sweep)
        _check_sweep(sweep)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {_explain(str(error))}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return sweep


def _check_sweep(sweep: Sweep) -> None:
    """Cross-field rules that types cannot say."""
    for where, values in (("model.d_model", sweep.model.d_model), ("data.tokens", sweep.data.tokens)):
        _check_axis(where, values)
    for where, options in (("model.options", sweep.model.options), ("training.options", sweep.training.options)):
        for name, value in options.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{where}: {name} = {value} cannot be recorded; write a finite number, or text")
    if sweep.tune:
        for where in ("d_model", "rates", "tokens", "batch_tokens"):
            if (values := getattr(sweep.tune, where)) is not None:
                _check_axis(f"tune.{where}", values)
        if len(sweep.tune.rates) < 3:
            raise UserError(
                f"tune.rates has {len(sweep.tune.rates)} values; a minimum between rates needs at least 3, such as a factor 2 apart"
            )
        if sweep.tune.stop and (sweep.training.schedule != "trunk" or len(sweep.tune.tokens or sweep.data.tokens) < 2):
            raise UserError(
                'tune.stop decides between the amounts of data of a trunk; it needs training.schedule = "trunk" and two or more tune.tokens'
            )
        if sweep.tune.stop and sweep.evaluation.split == "tune":
            raise UserError(
                'tune.stop and evaluation.split = "tune" do not go together: only runs of the tuning text may be stopped, and no law '
                'is fitted on those; leave evaluation.split out ("heldout"), or tune.stop'
            )
    if sweep.forecast and sweep.holdout is None:
        raise UserError("[forecast] needs [holdout]: say which runs are forecast")
    if sweep.holdout:
        _check_axis("holdout.d_model", sweep.holdout.d_model)
        _check_axis("holdout.tokens", sweep.holdout.tokens)
    for number, cell in enumerate(sweep.run):
        _check_axis(f"run[{number}].tokens", [cell.tokens])
    _check_text_axes(sweep)
    limit_of(sweep.budget)
    _check_size(sweep)
    training, context = sweep.training, sweep.model.sequence_length
    if isinstance(training.seeds, list) and len(training.seeds) != len(sweep.model.d_model):
        raise UserError(
            f"training.seeds lists {len(training.seeds)} numbers for {len(sweep.model.d_model)} widths; "
            "give one number, or one for each of model.d_model"
        )
    for name in ("learning_rate_decay_from", "learning_rate_params", "learning_rate_tokens"):
        parse_quantity(getattr(training, name))
    for batch in [training.batch_tokens, *((sweep.tune and sweep.tune.batch_tokens) or [])]:
        if batch % context:
            raise UserError(
                f"training.batch_tokens = {batch} is not a multiple of model.sequence_length = {context}; "
                f"write a multiple such as {4 * context}"
            )
    if training.objective != "softmax" and sweep.model.kind != "transformer":
        raise UserError(
            f'training.objective = "{training.objective}" is for model.kind = "transformer", not "{sweep.model.kind}"; leave one out'
        )
    if training.schedule == "trunk" and training.learning_rate_tokens_power:
        raise UserError(
            "training.learning_rate_tokens_power needs independent runs: the branches of one trunk share its rate; "
            'set training.schedule to "wsd", "cosine", "linear" or "constant"'
        )


def _check_size(sweep: Sweep) -> None:
    """Refuse a sweep of more than `MOST_RUNS` runs before any of them is made."""
    seeds, widths = sweep.training.seeds, len(sweep.model.d_model)
    texts = 1
    for axis in (sweep.corpus, sweep.tokenizer, sweep.data.mixture, sweep.data.tokens_unique):
        texts *= len(axis) if isinstance(axis, list) else 1
    runs = (sum(seeds) if isinstance(seeds, list) else seeds * widths) * len(sweep.data.tokens) + len(sweep.run)
    if held := sweep.holdout:
        runs += len(held.d_model) * held.seeds * len(held.tokens)
    if tune := sweep.tune:
        amounts, batches = len(tune.tokens or "any"), len(tune.batch_tokens or "1")
        runs += len(tune.d_model) * max(len(tune.rates), tune.most_rates) * batches * tune.seeds * amounts
    if runs * texts > MOST_RUNS:
        raise UserError(f"the grid has {runs * texts} runs, and {MOST_RUNS} is the most; give fewer values or seeds, or split the sweep")


def _check_text_axes(sweep: Sweep) -> None:
    """Refuse axes of the text that are empty, name a value twice, or hold weights that do not sum to one."""
    for where, names in (("corpus", sweep.corpus), ("tokenizer", sweep.tokenizer)):
        if isinstance(names, list) and (not names or len(set(names)) < len(names)):
            raise UserError(f"{where} = {names} is empty or names a value twice; give each name once")
    if sweep.data.tokens_unique is not None:
        limits = [value for value in sweep.data.tokens_unique if value != "all"]
        if limits or not sweep.data.tokens_unique:
            _check_axis("data.tokens_unique", limits)
    if sweep.data.mixture == []:
        raise UserError("data.mixture is empty, so the grid has no runs; give at least one mixture, or leave the key out")
    try:
        if codecs.lookup(sweep.text.encoding).name in ("punycode", "idna", "undefined"):
            raise LookupError  # made for names of hosts, not for text
        b"a".decode(sweep.text.encoding)  # refuses what turns bytes into bytes, such as zlib
    except (LookupError, ValueError):
        raise UserError(f"text.encoding = {sweep.text.encoding!r} is not known; use a name such as utf-8, latin-1, gb18030") from None
    for number, weights in enumerate(sweep.data.mixture or []):
        total = sum(weights.values())
        if abs(total - 1) > 1e-6:
            raise UserError(f"data.mixture[{number}] = {weights} sums to {total:.6g}; the weights of a mixture sum to 1")


def _check_axis(where: str, values: list[Any]) -> None:
    if not values:
        raise UserError(f"{where} is empty, so the grid has no runs; give at least one value")
    try:
        numbers = [parse_quantity(value) for value in values]
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{where} names a value twice: {values}; keep each value once (repeats are training.seeds)")


_KEYS: dict[str, type[Struct]] = {
    "$": Sweep,
    "$.model": ModelGrid,
    "$.text": TextOptions,
    "$.data": DataGrid,
    "$.training": Training,
    "$.evaluation": Evaluation,
    "$.tune": Tune,
    "$.run[...]": Cell,
    "$.holdout": Holdout,
    "$.forecast": Forecast,
    "$.fit": FitOptions,
    "$.records": Records,
    "$.budget": Budget,
    "$.devices": Devices,
}


def _explain(message: str) -> str:
    """Msgspec's message with the key named as in TOML, and the keys that are allowed there."""
    text, _, at = message.partition(" - at `")
    where = at.rstrip("`") or "$"
    name = where.removeprefix("$").lstrip(".") or "top level"
    table = re.sub(r"\[\d+\]", "[...]", where)
    if "unknown field" in text and table in _KEYS:
        key = text.split("`")[1]
        allowed = ", ".join(field.name for field in msgspec.structs.fields(_KEYS[table]))
        return f"unknown key `{key}` in {name}; allowed: {allowed}"
    if "missing required field" in text:
        return f"{text.replace('Object missing', 'missing').replace('field', 'key')} in {name}; see docs/sweeps.md"
    return f"{name}: {text}; see docs/sweeps.md"
