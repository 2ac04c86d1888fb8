"""Own JAX models and optimizers, by registration from Python: nothing named in a sweep file is ever executed.

`SCALING_PLUGINS=my_module` (several by commas) names importable modules; every command and every worker imports them before a sweep is
read. A module calls `register_model` or `register_optimizer`, and a sweep names what they registered: `model.kind = "..."`,
`training.optimizer = "..."`. The hash of the module's source is part of every `run_id` (docs/sweeps.md has an example).
"""

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scaling.config import ModelConfig, OptimizerConfig, Options, UserError

PLUGINS = "SCALING_PLUGINS"
SHIPPED = "scaling.families"
"""Registered like a user's module, when a name is asked for that is none of the below."""
MODELS = ("transformer",)
OPTIMIZERS = ("muon", "adamw")


@dataclass(frozen=True)
class Architecture:
    """What training needs of a model.

    Attributes
    ----------
    initial_parameters : (config, seed) -> nested dict of arrays
        Jittable in `seed`.
    mean_loss : (config, parameters, windows (batch, length + 1) int32) -> ()
        Mean cross-entropy of the next token, nats; differentiable.
    window_losses : (config, parameters, windows (k, batch, length + 1) uint8) -> (k, batch)
        Mean cross-entropy of each window, nats.
    count_parameters : (config) -> (embedding, non-embedding, unembedding)
    forward_flops_per_token : (config) -> {part: FLOPs}
    group_of : (name of a parameter) -> "matrix", "embedding" or "head"
        Which rate it is trained with.
    """

    initial_parameters: Callable[..., dict]
    mean_loss: Callable[..., Any]
    window_losses: Callable[..., Any]
    count_parameters: Callable[[ModelConfig], tuple[int, int, int]]
    forward_flops_per_token: Callable[[ModelConfig], dict[str, int]]
    group_of: Callable[[str], str]


@dataclass(frozen=True)
class _Registered:
    value: Any
    code: str


_models: dict[str, _Registered] = {}
_optimizers: dict[str, _Registered] = {}


def register_model(name: str, architecture: Architecture) -> None:
    """Make `model.kind = name` mean this architecture.

    Raises
    ------
    UserError
        When the name is taken by what ships with the project, or by another module.
    """
    _register(_models, MODELS, name, architecture, _source_hash())


def register_optimizer(name: str, make: Callable[[OptimizerConfig], Any]) -> None:
    """Make `training.optimizer = name` mean the directions of an Optax transformation, `make(config)`.

    Directions are subtracted, each times its group's rate and the schedule: leave the rate out of the chain. The transformation sees the
    whole tree of parameters; its settings come from `training.options` as `dict(config.options)`.

    Raises
    ------
    UserError
        When the name is taken by what ships with the project, or by another module.
    """
    _register(_optimizers, OPTIMIZERS, name, make, _source_hash())


def _source_hash() -> str:
    """Hash of the source file of the module that registers."""
    frame = inspect.stack()[2]
    with open(frame.filename, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()[:12]


def _register(known: dict[str, _Registered], shipped: tuple[str, ...], name: str, value: Any, code: str) -> None:
    if name in shipped or (name in known and known[name].code != code):
        raise UserError(f"{PLUGINS}: the name `{name}` is taken; register under another name")
    known[name] = _Registered(value, code)


def load_plugins() -> None:
    """Import `SHIPPED` and the modules that `SCALING_PLUGINS` names; a second call does nothing new.

    Raises
    ------
    UserError
        When one cannot be imported.
    """
    importlib.import_module(SHIPPED)
    for module in filter(None, (name.strip() for name in os.environ.get(PLUGINS, "").split(","))):
        if module in sys.modules:
            continue
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"{PLUGINS}: module `{module}` cannot be imported ({error}); put its folder on PYTHONPATH") from error


def registered_options(kind: str, options: Mapping[str, Any], *, what: str) -> Options:
    """Options of a registered model or optimizer with the hash of its source; empty for what ships with the project.

    Raises
    ------
    UserError
        When nothing of this name is known, or a shipped one is given options.
    """
    known, shipped = {"model.kind": (_models, MODELS), "training.optimizer": (_optimizers, OPTIMIZERS)}[what]
    if kind in shipped:
        if options:
            raise UserError(f"{what.split('.')[0]}.options is for registered ones; `{kind}` has none")
        return ()
    load_plugins()
    if kind not in known:
        names = ", ".join([*shipped, *known])
        raise UserError(f"{what} = `{kind}` is unknown; allowed: {names}, or register it in a module named in {PLUGINS} (docs/sweeps.md)")
    return tuple(sorted({**options, "code": known[kind].code}.items()))


def architecture(kind: str) -> Architecture:
    """The registered architecture of a name.

    Raises
    ------
    UserError
        When nothing of this name is registered here.
    """
    load_plugins()
    if kind not in _models:
        raise UserError(f"model.kind = `{kind}` is not registered here; name its module in {PLUGINS}")
    return _models[kind].value


def optimizer_maker(kind: str) -> Callable[[OptimizerConfig], Any]:
    """What makes the directions of a registered optimizer.

    Raises
    ------
    UserError
        When nothing of this name is registered here.
    """
    load_plugins()
    if kind not in _optimizers:
        raise UserError(f"training.optimizer = `{kind}` is not registered here; name its module in {PLUGINS}")
    return _optimizers[kind].value
