"""What there is to choose from: every law form, and every published preset."""

from __future__ import annotations

import math

import pandas as pd

from analysis.errors import UserError
from analysis.formula import Parameter
from analysis.frames import Frame
from analysis.laws import LAWS, Law, get_law
from analysis.powers import power_sum
from analysis.presets import PRESETS, AllocationPreset, Preset


def catalog() -> Frame:
    """List the registry.

    Returns
    -------
    DataFrame
        name, kind ("form", "preset" or "allocation preset"), formula, parameters (a form's with bounds, a preset's with values), n_column
        (what a preset counts as N), source.
    """
    forms = [
        {"name": law.name, "kind": "form", "formula": law.formula, "parameters": ", ".join(map(_bounds, law.free)), "n_column": "",
         "source": law.source}
        for law in LAWS.values()
    ]  # fmt: skip
    presets = [
        {"name": preset.name, "kind": _kind(preset), "formula": _formula(preset),
         "parameters": ", ".join(f"{key} {value:.6g}" for key, value in preset.params.items()), "n_column": preset.n_column,
         "source": preset.source}
        for preset in PRESETS.values()
    ]  # fmt: skip
    return pd.DataFrame(forms + presets)


def describe(text: str) -> Frame:
    """Tell all about one law form, preset or formula.

    Returns
    -------
    DataFrame
        item, value (text).

    Raises
    ------
    UserError
        When there is nothing of that name, or the formula is not understood.
    """
    if text in PRESETS:
        return _describe_preset(PRESETS[text])
    try:
        law = get_law(text)
    except UserError as error:
        raise UserError(f"{error}; presets: {', '.join(PRESETS)}" if "is unknown" in str(error) else str(error)) from None
    grid = power_sum(law.expression) is not None
    rows = [
        ("name", law.name),
        ("kind", "form" if text in LAWS else "formula"),
        ("formula", law.formula),
        ("variables", ", ".join(law.variables)),
        ("fitted on", law.subset),
        *((f"parameter {p.name}", _bounds(p) + ("" if grid else f"; search starts {_start(p)}")) for p in law.free),
        ("search", "exhaustive over the exponents" if grid else "from many starts" + (f" and from {law.simpler}" if law.simpler else "")),
        ("presets", ", ".join(_presets_of(law)) or "none"),
        ("source", law.source),
    ]
    return pd.DataFrame(rows, columns=["item", "value"])


def _describe_preset(preset: Preset | AllocationPreset) -> Frame:
    rows = [
        ("name", preset.name),
        ("kind", _kind(preset)),
        ("law", preset.law.name if isinstance(preset, Preset) else "none: what to train with a budget, without the loss"),
        ("formula", _formula(preset)),
        *((f"parameter {name}", repr(float(value))) for name, value in preset.params.items()),
        ("N", preset.n_column),
        ("source", preset.source),
    ]
    return pd.DataFrame(rows, columns=["item", "value"])


def _bounds(parameter: Parameter) -> str:
    low, high, name = parameter.low, parameter.high, parameter.name
    if math.isfinite(low) and math.isfinite(high):
        return f"{low:g} < {name} < {high:g}"
    return f"{name} > {low:g}" if math.isfinite(low) else f"{name} < {high:g}" if math.isfinite(high) else f"{name} real"


def _start(parameter: Parameter) -> str:
    if isinstance(parameter.start, str):
        return f"over the data's range of {parameter.start}"
    return f"from {parameter.start[0]:g} to {parameter.start[1]:g}"


def _presets_of(law: Law) -> list[str]:
    return [name for name, preset in PRESETS.items() if isinstance(preset, Preset) and preset.law is law]


def _kind(preset: Preset | AllocationPreset) -> str:
    return "preset" if isinstance(preset, Preset) else "allocation preset"


def _formula(preset: Preset | AllocationPreset) -> str:
    return preset.law.formula if isinstance(preset, Preset) else preset.formula
