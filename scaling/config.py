"""Sweep files and resolved runs: frozen, typed, strictly parsed, with a canonical hash.

A sweep file (TOML) is what a user writes; a `RunConfig` is one run with every number resolved. `run_id` and `trunk_id` are a readable
part and a hash of everything that determines the numbers (see `run_id`).
"""

import codecs
import hashlib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

RECIPE_VERSION = 1
"""Raised whenever the same config would give other numbers; part of every `run_id` (golden losses in tests hold it)."""

Positive = Annotated[int, msgspec.Meta(gt=0)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
Rate = Annotated[float, msgspec.Meta(ge=0, le=10)]
Fraction = Annotated[float, msgspec.Meta(gt=0, le=1)]
Quantity = int | float | str
Name = Annotated[str, msgspec.Meta(min_length=1)]


class UserError(ValueError):
    """A user's mistake: one line that says what, where, what is allowed and what to do. The CLI prints it and exits 2."""


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every config: immutable, unknown keys refused."""


# ---------------------------------------------------------------- what a user writes


class ModelGrid(Struct, frozen=True):
    """`[model]`: the sizes of the grid. What is left out follows from the recipe (width -> shape)."""

    d_model: list[Positive]
    recipe: Literal["small"] = "small"
    n_layers: Positive | None = None
    head_dim: Positive | None = None
    d_ff: Positive | None = None
    sequence_length: Positive = 128
    rope_base: Annotated[float, msgspec.Meta(gt=1)] = 1000.0


class TextOptions(Struct, frozen=True):
    """`[text]`: how text is read and cleaned (docs/corpora.md)."""

    encoding: Annotated[str, msgspec.Meta(min_length=1)] = "utf-8"
    encoding_errors: Literal["error", "replace", "skip"] = "error"
    field: Annotated[str, msgspec.Meta(min_length=1)] = "text"
    near_duplicates: Annotated[float, msgspec.Meta(ge=0.5, lt=1)] | None = None
    personal_data: Literal["keep", "remove"] = "keep"


class DataGrid(Struct, frozen=True):
    """`[data]`: training tokens of each run, and of how many different tokens and which mixture of domains they are taken."""

    tokens: list[Quantity]
    tokens_unique: list[Quantity] | None = None
    mixture: list[dict[str, NonNegative]] | None = None


class Training(Struct, frozen=True):
    """`[training]`: schedule, seeds and every number of the recipe."""

    schedule: Literal["trunk"] = "trunk"
    seeds: Positive = 1
    batch_tokens: Positive = 512
    warmup_steps: Annotated[int, msgspec.Meta(ge=0)] = 50
    cooldown_fraction: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.2
    learning_rate: Rate = 0.016
    learning_rate_decay_power: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.3
    learning_rate_decay_from: Quantity = "0.5M"
    embedding_learning_rate: Rate = 0.05
    head_learning_rate: Rate = 0.015
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.85
    beta1: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.99
    weight_decay: NonNegative = 0.0


class Evaluation(Struct, frozen=True):
    """`[evaluation]`: the same held-out windows for every run."""

    windows: Positive = 1024


class Holdout(Struct, frozen=True):
    """`[holdout]`: trunks that are never fitted: forecast first, trained last, scored once."""

    d_model: list[Positive]
    tokens: list[Quantity]
    seeds: Positive = 1
    threshold: Fraction = 0.015


class FitOptions(Struct, frozen=True):
    """`[fit]`: which laws, and how."""

    laws: list[str] = msgspec.field(default_factory=lambda: ["power-n", "power-d", "power-c", "chinchilla"])
    forecast_law: str = "chinchilla"
    loss: str = "huber:auto"
    link: Literal["log", "linear"] = "log"
    n_column: str = "params_non_embedding"
    bootstrap: Annotated[int, msgspec.Meta(ge=100, le=100_000)] = 1000
    seed: int = 0


class Records(Struct, frozen=True):
    """`[records]`: what is kept on disk, and how often progress is saved."""

    keep: Literal["final", "all", "none"] = "final"
    checkpoint_seconds: Annotated[float, msgspec.Meta(gt=0)] = 20.0


class Sweep(Struct, frozen=True):
    """A whole sweep file."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    corpus: Name | list[Name]
    model: ModelGrid
    data: DataGrid
    tokenizer: Name | list[Name] = "bytes"
    text: TextOptions = TextOptions()
    training: Training = msgspec.field(default_factory=Training)
    evaluation: Evaluation = msgspec.field(default_factory=Evaluation)
    holdout: Holdout | None = None
    fit: FitOptions = msgspec.field(default_factory=FitOptions)
    records: Records = msgspec.field(default_factory=Records)


# ---------------------------------------------------------------- one resolved run


class ModelConfig(Struct, frozen=True):
    """Shape of a decoder-only transformer (counts in `scaling.accounting`)."""

    d_model: Positive
    n_layers: Positive
    n_heads: Positive
    d_ff: Positive
    vocab_size: Positive
    sequence_length: Positive
    rope_base: float = 1000.0


class OptimizerConfig(Struct, frozen=True):
    """Muon for matrices, Adam for the rest; `head_learning_rate` is already scaled to the width."""

    learning_rate: float
    embedding_learning_rate: float
    head_learning_rate: float
    momentum: float
    beta1: float
    beta2: float
    weight_decay: float


class ScheduleConfig(Struct, frozen=True):
    """Rate multiplier on the trunk: linear warm-up, flat, then (tokens / decay_from_tokens) ** -decay_power."""

    warmup_steps: int
    decay_power: float
    decay_from_tokens: int


class DataConfig(Struct, frozen=True):
    """Which tokens, in which order. `corpus_hash` covers the text, its preparation and its split.

    `tokens_unique`: epochs are of so many tokens only; `mixture`: share of the tokens by domain, sorted by name.
    """

    corpus: str
    corpus_hash: str
    tokenizer: str
    batch_tokens: Positive
    evaluation_windows: Positive
    seed_data: int
    tokens_unique: Positive | msgspec.UnsetType = msgspec.UNSET  # unset keys are no part of the hash
    mixture: tuple[tuple[str, float], ...] | msgspec.UnsetType = msgspec.UNSET


class TrunkConfig(Struct, frozen=True):
    """All that the branches of one trunk share: everything but D and the cooldown."""

    model: ModelConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    data: DataConfig
    seed_init: int
    precision: Literal["float32"] = "float32"
    recipe_version: int = RECIPE_VERSION


class RunConfig(Struct, frozen=True):
    """One run: a branch of `steps` optimizer steps that leaves its trunk at `branch_step` and cools down to zero."""

    trunk: TrunkConfig
    steps: Positive
    branch_step: Annotated[int, msgspec.Meta(ge=0)]
    role: Literal["fit", "holdout"] = "fit"

    @property
    def tokens(self) -> int:
        """Training tokens seen, repeats included."""
        return self.steps * self.trunk.data.batch_tokens

    @property
    def trunk_id(self) -> str:
        """Readable part and hash of `TrunkConfig`."""
        trunk = self.trunk
        return f"d{trunk.model.d_model}-s{trunk.seed_init}-{trunk.data.seed_data}-{canonical_hash(trunk)}"

    @property
    def run_id(self) -> str:
        """Readable part and hash of what determines the numbers; the role does not."""
        trunk = self.trunk
        digest = canonical_hash({"trunk": trunk, "steps": self.steps, "branch_step": self.branch_step})
        label = f"d{trunk.model.d_model}-D{format_quantity(self.tokens)}-s{trunk.seed_init}-{trunk.data.seed_data}"
        return f"{label}-{digest}"


def canonical_hash(value: Any) -> str:
    """First 10 hex digits of the SHA-256 of the canonical (sorted, compact) JSON of `value`."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()[:10]


# ---------------------------------------------------------------- quantities


_SUFFIX = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_QUANTITY = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([kKMBGT]?)\s*$")


def parse_quantity(text: Quantity) -> float:
    """Number from `20e9`, `20B`, `1.5M`, `4k` or a plain number; positive and finite.

    Raises
    ------
    ValueError
        If `text` is not a positive finite quantity.

    >>> parse_quantity("1.5M")
    1500000.0
    """
    if isinstance(text, bool):
        raise UserError(f"{text!r} is not a quantity; write a number such as 20e9, 20B, 1.5M or 4k")
    match = _QUANTITY.match(str(text))
    value = float(match[1]) * _SUFFIX[match[2]] if match else float("nan")
    if not 0 < value < 1e300:
        raise UserError(f"{text!r} is not a positive quantity; write a number such as 20e9, 20B, 1.5M or 4k")
    return value


def format_quantity(value: float) -> str:
    """Shortest of `512`, `4k`, `1.5M`, `20B` that shows three significant digits.

    >>> format_quantity(2_000_000)
    '2M'
    """
    for suffix, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * scale:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"


# ---------------------------------------------------------------- parsing


def load_sweep(path: str | Path) -> Sweep:
    """Read and check a sweep file.

    Raises
    ------
    UserError
        One line: the file, the key, what is allowed, what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such sweep file; `ls sweeps/` shows those that ship with the project")
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
    if sweep.holdout:
        _check_axis("holdout.d_model", sweep.holdout.d_model)
        _check_axis("holdout.tokens", sweep.holdout.tokens)
    check_text_axes(sweep)
    training, context = sweep.training, sweep.model.sequence_length
    parse_quantity(training.learning_rate_decay_from)
    if training.batch_tokens % context:
        raise UserError(
            f"training.batch_tokens = {training.batch_tokens} is not a multiple of model.sequence_length = {context}; "
            f"write a multiple such as {4 * context}"
        )


def check_text_axes(sweep: Sweep) -> None:
    """Refuse axes of the text that are empty, name a value twice, or hold weights that do not sum to one."""
    for where, names in (("corpus", sweep.corpus), ("tokenizer", sweep.tokenizer)):
        if isinstance(names, list) and (not names or len(set(names)) < len(names)):
            raise UserError(f"{where} = {names} is empty or names a value twice; give each name once")
    if sweep.data.tokens_unique is not None:
        _check_axis("data.tokens_unique", [value for value in sweep.data.tokens_unique if value != "all"] or ["1"])
    try:
        codecs.lookup(sweep.text.encoding)
    except LookupError:
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
    "$.holdout": Holdout,
    "$.fit": FitOptions,
    "$.records": Records,
}


def _explain(message: str) -> str:
    """Msgspec's message with the key named as in TOML, and the keys that are allowed there."""
    text, _, at = message.partition(" - at `")
    where = at.rstrip("`") or "$"
    name = where.removeprefix("$").lstrip(".") or "top level"
    if "unknown field" in text and where in _KEYS:
        key = text.split("`")[1]
        allowed = ", ".join(field.name for field in msgspec.structs.fields(_KEYS[where]))
        return f"unknown key `{key}` in {name}; allowed: {allowed}"
    if "missing required field" in text:
        return f"{text.replace('Object missing', 'missing').replace('field', 'key')} in {name}; see docs/sweeps.md"
    return f"{name}: {text}; see docs/sweeps.md"
