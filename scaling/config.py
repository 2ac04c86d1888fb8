"""Sweep files and resolved runs: frozen, typed, strictly parsed, with a canonical hash.

A sweep file (TOML) is what a user writes; a `RunConfig` is one run with every number resolved. `run_id` and `trunk_id` are a readable
part and a hash of everything that determines the numbers (see `run_id`).
"""

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

RECIPE_VERSION = 2
"""Raised whenever the same config would give other numbers; part of every `run_id` (golden losses in tests hold it)."""

Positive = Annotated[int, msgspec.Meta(gt=0)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
Rate = Annotated[float, msgspec.Meta(ge=0, le=10)]
Fraction = Annotated[float, msgspec.Meta(gt=0, le=1)]
Power = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Quantity = int | float | str
Schedule = Literal["trunk", "wsd", "cosine", "linear", "constant"]
Split = Literal["heldout", "tune"]
Precision = Literal["float32", "bfloat16"]


class UserError(ValueError):
    """A user's mistake: one line that says what, where, what is allowed and what to do. The CLI prints it and exits 2."""


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every config: immutable, unknown keys refused."""


# ---------------------------------------------------------------- what a user writes


class ModelGrid(Struct, frozen=True):
    """`[model]`: the sizes of the grid. What is left out follows from the recipe (width -> shape)."""

    d_model: list[Positive]
    recipe: Literal["small"] = "small"
    kind: str = "transformer"
    options: dict[str, bool | int | float | str] = msgspec.field(default_factory=dict)
    width_per_layer: Positive = 8
    n_layers: Positive | None = None
    head_dim: Positive | None = None
    d_ff: Positive | None = None
    sequence_length: Positive = 128
    rope_base: Annotated[float, msgspec.Meta(gt=1)] = 1000.0


class DataGrid(Struct, frozen=True):
    """`[data]`: training tokens of each run; quantities such as "2M" are accepted."""

    tokens: list[Quantity]


class Training(Struct, frozen=True):
    """`[training]`: optimizer, schedule, seeds and every number of the recipe; None is the recipe's number (`scaling.recipe`)."""

    optimizer: str = "muon"
    options: dict[str, bool | int | float | str] = msgspec.field(default_factory=dict)
    schedule: Schedule = "trunk"
    seeds: Positive | list[Positive] = 1
    data_order: Literal["own", "shared"] = "own"
    batch_tokens: Positive = 512
    warmup_steps: Annotated[int, msgspec.Meta(ge=0)] = 50
    cooldown_fraction: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.2
    final_rate: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    learning_rate: Rate | None = None
    learning_rate_params: Quantity = "25k"
    learning_rate_params_power: Power | None = None
    learning_rate_tokens: Quantity = "1M"
    learning_rate_tokens_power: Power = 0.0
    learning_rate_decay_power: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.3
    learning_rate_decay_from: Quantity = "0.5M"
    embedding_learning_rate: Rate = 0.05
    head_learning_rate: Rate = 0.015
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.85
    beta1: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.99
    weight_decay: NonNegative = 0.0
    precision: Precision = "float32"


class Evaluation(Struct, frozen=True):
    """`[evaluation]`: the same windows for every run, of the held-out text or of the text kept for tuning."""

    windows: Positive = 1024
    split: Split = "heldout"


class Tune(Struct, frozen=True):
    """`[tune]`: a rate (and batch) sweep at chosen cells, scored on the tuning text; its optimum gives the rates of the grid."""

    d_model: list[Positive]
    rates: list[Rate]
    tokens: list[Quantity] | None = None
    batch_tokens: list[Positive] | None = None
    seeds: Positive = 1
    most_rates: Positive = 7


class Holdout(Struct, frozen=True):
    """`[holdout]`: trunks that are never fitted: forecast first, trained last, scored once."""

    d_model: list[Positive]
    tokens: list[Quantity]
    seeds: Positive = 1
    threshold: Fraction = 0.015
    first_seed: Annotated[int, msgspec.Meta(ge=0)] = 0


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
    corpus: Annotated[str, msgspec.Meta(min_length=1)]
    model: ModelGrid
    data: DataGrid
    tokenizer: Literal["bytes"] = "bytes"
    training: Training = msgspec.field(default_factory=Training)
    evaluation: Evaluation = msgspec.field(default_factory=Evaluation)
    tune: Tune | None = None
    holdout: Holdout | None = None
    fit: FitOptions = msgspec.field(default_factory=FitOptions)
    records: Records = msgspec.field(default_factory=Records)


# ---------------------------------------------------------------- one resolved run


Options = tuple[tuple[str, bool | int | float | str], ...]
"""Settings of a registered model or optimizer, sorted by name, so that configs stay hashable; `code` is the hash of its source."""


class ModelConfig(Struct, frozen=True):
    """Shape of a decoder-only transformer (counts in `scaling.accounting`), or of a registered model (`scaling.registry`)."""

    d_model: Positive
    n_layers: Positive
    n_heads: Positive
    d_ff: Positive
    vocab_size: Positive
    sequence_length: Positive
    rope_base: float = 1000.0
    kind: str = "transformer"
    options: Options = ()


class OptimizerConfig(Struct, frozen=True):
    """Rates by parameter group, already scaled to the model; `learning_rate` is that of the matrices.

    `kind`: muon (Muon for matrices, Adam for the rest), adamw, or a registered optimizer (`scaling.registry`).
    """

    learning_rate: float
    embedding_learning_rate: float
    head_learning_rate: float
    momentum: float
    beta1: float
    beta2: float
    weight_decay: float
    kind: str = "muon"
    options: Options = ()


class ScheduleConfig(Struct, frozen=True):
    """Rate multiplier: linear warm-up, flat, then (tokens / decay_from_tokens) ** -decay_power on a trunk.

    `shape` other than trunk: a run of its own of `total_steps`; cosine and linear fall from the end of the warm-up to `final_rate` of the
    peak at the last step.
    """

    warmup_steps: int
    decay_power: float
    decay_from_tokens: int
    shape: Schedule = "trunk"
    total_steps: int = 0
    final_rate: float = 0.0


class DataConfig(Struct, frozen=True):
    """Which tokens, in which order. `corpus_hash` covers the text, its preparation and its split."""

    corpus: str
    corpus_hash: str
    tokenizer: str
    batch_tokens: Positive
    evaluation_windows: Positive
    seed_data: int
    evaluation_split: Split = "heldout"


class TrunkConfig(Struct, frozen=True):
    """All that the branches of one trunk share: everything but D and the cooldown."""

    model: ModelConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    data: DataConfig
    seed_init: int
    precision: Precision = "float32"
    recipe_version: int = RECIPE_VERSION


class RunConfig(Struct, frozen=True):
    """One run: a branch of `steps` steps that leaves its trunk at `branch_step` and cools down to zero (if it ends later at all)."""

    trunk: TrunkConfig
    steps: Positive
    branch_step: Annotated[int, msgspec.Meta(ge=0)]
    role: Literal["fit", "holdout", "tune"] = "fit"

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
    if sweep.tune:
        for where in ("d_model", "rates", "tokens", "batch_tokens"):
            if (values := getattr(sweep.tune, where)) is not None:
                _check_axis(f"tune.{where}", values)
        if len(sweep.tune.rates) < 3:
            raise UserError(
                f"tune.rates has {len(sweep.tune.rates)} values; a minimum between rates needs at least 3, such as a factor 2 apart"
            )
    if sweep.holdout:
        _check_axis("holdout.d_model", sweep.holdout.d_model)
        _check_axis("holdout.tokens", sweep.holdout.tokens)
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
    if training.schedule == "trunk" and training.learning_rate_tokens_power:
        raise UserError(
            "training.learning_rate_tokens_power needs independent runs: the branches of one trunk share its rate; "
            'set training.schedule to "wsd", "cosine", "linear" or "constant"'
        )


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
    "$.data": DataGrid,
    "$.training": Training,
    "$.evaluation": Evaluation,
    "$.tune": Tune,
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
