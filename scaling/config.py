"""Sweeps and resolved runs: frozen, typed, with a canonical hash.

A `Sweep` is what a user writes in a TOML file (`scaling.sweep_file`); a `RunConfig` is one run with every number resolved. `run_id` and
`trunk_id` are a readable part and a hash of everything that determines the numbers (see `run_id`).
"""

import hashlib
import re
from typing import Annotated, Any, Literal

import msgspec

RECIPE_VERSION = 2
"""Raised whenever the same config would give other numbers; part of every `run_id` (golden losses in tests hold it)."""

Positive = Annotated[int, msgspec.Meta(gt=0, le=2**53)]  # TOML knows no largest integer; beyond this one a float is not exact
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
Rate = Annotated[float, msgspec.Meta(ge=0, le=10)]
Fraction = Annotated[float, msgspec.Meta(gt=0, le=1)]
Power = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Quantity = int | float | str
Name = Annotated[str, msgspec.Meta(min_length=1)]
Schedule = Literal["trunk", "wsd", "cosine", "linear", "constant"]
Split = Literal["heldout", "tune"]
Precision = Literal["float32", "bfloat16"]
Objective = Literal["softmax", "one_vs_rest"]


class UserError(ValueError):
    """A user's mistake: one line that says what, where, what is allowed and what to do. The CLI prints it and exits 2.

    What names of data make longer than `LONGEST` characters is cut in the middle: what to do stands at the end.
    """

    LONGEST = 2000

    def __init__(self, text: str) -> None:
        half = self.LONGEST // 2
        super().__init__(text if len(text) <= self.LONGEST else f"{text[:half]} ... {text[-half:]}")


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
    """`[training]`: optimizer, schedule, seeds and every number of the recipe; None is the recipe's number (`scaling.recipe`)."""

    optimizer: str = "muon"
    options: dict[str, bool | int | float | str] = msgspec.field(default_factory=dict)
    schedule: Schedule = "trunk"
    seeds: Positive | list[Positive] = 1
    data_order: Literal["own", "shared"] = "own"
    batch_tokens: Positive = 512
    warmup_steps: Count = 50
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
    objective: Objective = "softmax"


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
    stop: Annotated[float, msgspec.Meta(ge=0, lt=0.5)] = 0.0


class Holdout(Struct, frozen=True):
    """`[holdout]`: trunks that are never fitted: forecast first, trained last, scored once."""

    d_model: list[Positive]
    tokens: list[Quantity]
    seeds: Positive = 1
    threshold: Fraction = 0.015
    first_seed: Count = 0


class Forecast(Struct, frozen=True):
    """`[forecast]`: what forecasts the hold-outs, and when the forecast counts as good; fixed before they are trained."""

    law: str = "chinchilla"
    relative_error: Fraction = 0.015
    inside: Literal["none", "law", "model"] = "none"


class Cell(Struct, frozen=True):
    """`[[run]]`: one run besides the grid, such as those that `scaling suggest` writes."""

    d_model: Positive
    tokens: Quantity
    seed: Count = 0


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


class Budget(Struct, frozen=True):
    """`[budget]`: bounds of what the whole sweep may take (`scaling.budget`); time is that of all its workers together."""

    flops: Quantity | None = None
    time: str | None = None
    disk: str | None = None


class Devices(Struct, frozen=True):
    """`[devices]`: what one run, or many small ones at once, is spread over (docs/gpu.md).

    `memory`: bytes of one device, to which micro-batches and populations are fitted. `population`: how many runs of one shape are trained
    as one program; auto: by their number, their batch and the memory; one by one where the memory is not given. One run is spread over
    `data` x `parameters` devices: the batch over all of them, parameters and optimizer over `parameters`.
    """

    memory: Quantity | None = None
    population: Positive | Literal["auto"] = "auto"
    data: Positive = 1
    parameters: Positive = 1

    @property
    def spread(self) -> int:
        """Devices of one run."""
        return self.data * self.parameters


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
    tune: Tune | None = None
    run: list[Cell] = []
    holdout: Holdout | None = None
    forecast: Forecast | None = None
    fit: FitOptions = msgspec.field(default_factory=FitOptions)
    records: Records = msgspec.field(default_factory=Records)
    budget: Budget = Budget()
    devices: Devices = Devices()

    @property
    def forecast_rule(self) -> Forecast:
        """`[forecast]`; where there is none: `fit.forecast_law` and `holdout.threshold`."""
        if self.forecast or self.holdout is None:
            return self.forecast or Forecast(law=self.fit.forecast_law)
        return Forecast(law=self.fit.forecast_law, relative_error=self.holdout.threshold)


# ---------------------------------------------------------------- one resolved run


Options = tuple[tuple[str, bool | int | float | str], ...]
"""Settings of a registered model or optimizer, sorted by name, so that configs stay hashable; `code` is the hash of its source."""


class ModelConfig(Struct, frozen=True):
    """Shape of a decoder-only transformer (counts in `scaling.accounting`), or of a registered model (`scaling.registry`).

    `objective`: how its logits become probabilities and a loss, where that is not softmax cross-entropy (`scaling.objective`).
    """

    d_model: Positive
    n_layers: Positive
    n_heads: Positive
    d_ff: Positive
    vocab_size: Positive
    sequence_length: Positive
    rope_base: float = 1000.0
    kind: str = "transformer"
    options: Options = ()
    objective: Objective | msgspec.UnsetType = msgspec.UNSET  # unset is softmax, and no part of the hash


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

    @property
    def without_rates(self) -> "OptimizerConfig":
        """The part of the optimizer that is compiled in: rates are arguments of the program."""
        rates = dict.fromkeys(("learning_rate", "embedding_learning_rate", "head_learning_rate", "weight_decay"), 0.0)
        return msgspec.structs.replace(self, **rates)


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
    """Which tokens, in which order. `corpus_hash` covers the text, its preparation and its split.

    `tokens_unique`: epochs are of so many tokens only; `mixture`: share of the tokens by domain, sorted by name.
    """

    corpus: str
    corpus_hash: str
    tokenizer: str
    batch_tokens: Positive
    evaluation_windows: Positive
    seed_data: int
    evaluation_split: Split = "heldout"
    tokens_unique: Positive | msgspec.UnsetType = msgspec.UNSET  # unset keys are no part of the hash
    mixture: tuple[tuple[str, float], ...] | msgspec.UnsetType = msgspec.UNSET


class TrunkConfig(Struct, frozen=True):
    """All that the branches of one trunk share: everything but D and the cooldown.

    `population`: trained in one of so many lanes of one program; `micro_batches`: parts of a batch, one after the other. Both follow from
    `[devices]`; without it they are unset and no part of the hash.
    """

    model: ModelConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    data: DataConfig
    seed_init: int
    precision: Precision = "float32"
    recipe_version: int = RECIPE_VERSION
    population: Positive | msgspec.UnsetType = msgspec.UNSET
    micro_batches: Positive | msgspec.UnsetType = msgspec.UNSET

    @property
    def lanes(self) -> int:
        """Size of the population."""
        return 1 if self.population is msgspec.UNSET else self.population

    @property
    def batch_parts(self) -> int:
        """Number of micro-batches."""
        return 1 if self.micro_batches is msgspec.UNSET else self.micro_batches


class RunConfig(Struct, frozen=True):
    """One run: a branch of `steps` steps that leaves its trunk at `branch_step` and cools down to zero (if it ends later at all)."""

    trunk: TrunkConfig
    steps: Positive
    branch_step: Count
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
