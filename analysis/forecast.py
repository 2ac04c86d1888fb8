"""Forecasts: registered before the held-out run is trained, scored once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analysis.errors import UserError
from analysis.files import write_text
from analysis.fitting import Fit
from analysis.optimal import extrapolation, model_interval

KEPT_DRAWS = 200


def register(fit: Fit, target: Mapping[str, Any], *, threshold: float = 0.015, folder: str | Path) -> Path:
    """Write ``folder/forecasts/ID.json``, once: a forecast for the same run that is already there is returned unchanged.

    Parameters
    ----------
    fit : Fit
        With draws.
    target : mapping
        run_id, trunk_id, tokens, and the column that is the fit's N.
    threshold : float
        Largest relative error that counts as success, fixed beforehand.

    Returns
    -------
    Path
        ID is the first 12 hex digits of the SHA-256 of the content.

    Raises
    ------
    UserError
        When the target lacks a needed column, or the fit has no draws.
    """
    root = Path(folder) / "forecasts"
    for path, known in _forecast_files(folder):
        if known["target"].get("run_id") == target.get("run_id"):
            return path
    for column in ("run_id", fit.n_column, "tokens"):
        if column not in target:
            raise UserError(f"forecast: the target lacks {column!r}; found: {', '.join(target)}")
    if fit.draws is None:
        raise UserError("forecast: the fit has no draws; bootstrap it first")
    n, d = float(target[fit.n_column]), float(target["tokens"])
    values = {"N": n, "D": d, "C": 6 * n * d}
    low, high = fit.interval(noise=True, **values)
    # Evenly chosen draws with the noise of one new run, so that the record alone can be scored later.
    rows = np.linspace(0, len(fit.draws) - 1, min(KEPT_DRAWS, len(fit.draws))).astype(int)
    sample = fit.law.predict({p: fit.draws[p].to_numpy()[rows] for p in fit.law.parameters}, **values)
    noise = fit.noise.run_sd(np.array([n]), np.array([d])) * np.random.default_rng(20240103).standard_normal(len(rows))
    record = {
        "target": {key: _plain(value) for key, value in target.items()},
        "law": fit.law.name,
        "formula": fit.law.formula,
        "fit_id": fit.fit_id,
        "fit_status": fit.status,
        "n_column": fit.n_column,
        "parameters": fit.params,
        "predicted": float(fit.predict(**values)),
        "pi_low": float(low),
        "pi_high": float(high),
        **{name: value if math.isfinite(value) else None for name, value in model_interval(fit, n=n, d=d).items()},
        "level": fit.ci_level,
        "threshold_relative_error": threshold,
        "noise": fit.noise.source,
        "method": fit.method,
        "extrapolation": extrapolation(fit, params=n, tokens=d),
        "draws": [float(v) for v in sample * np.exp(noise)],
        "runs": [str(run) for run in fit.frame["run_id"]],
    }
    identity = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]
    return write_text(root / f"{identity}.json", json.dumps({"forecast_id": identity, **record}, indent=1) + "\n")


def read_forecasts(folder: str | Path) -> list[dict[str, Any]]:
    """Return the registered forecasts of a results folder, in the order of their targets' run ids.

    Raises
    ------
    UserError
        When a file is no forecast.
    """
    return sorted((record for _, record in _forecast_files(folder)), key=lambda r: (str(r["target"].get("run_id")), r["forecast_id"]))


def _forecast_files(folder: str | Path) -> list[tuple[Path, dict[str, Any]]]:
    found = []
    for path in sorted((Path(folder) / "forecasts").glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            numbers = [float(record[key]) for key in ("predicted", "pi_low", "pi_high", "threshold_relative_error")]
            if not (all(map(math.isfinite, numbers)) and isinstance(record["target"], dict) and record["forecast_id"]):
                raise ValueError("not finite")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: is no forecast ({error}); restore it, or remove it if it was never registered") from error
        found.append((path, record))
    return found


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
