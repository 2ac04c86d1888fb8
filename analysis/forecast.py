"""Forecasts: registered before the held-out run is trained, scored once."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analysis.errors import UserError
from analysis.files import write_text
from analysis.fitting import Fit
from analysis.optimal import extrapolation, model_interval

KEPT_DRAWS = 200


def register(fit: Fit, target: Mapping[str, Any], *, threshold: float = 0.015, inside: str = "none", folder: str | Path) -> Path:
    """Write ``folder/forecasts/ID.json``, once: a forecast for the same run that is already there is returned unchanged.

    Parameters
    ----------
    fit : Fit
        With draws.
    target : mapping
        run_id, trunk_id, tokens, and the column that is the fit's N.
    threshold : float
        Largest relative error that counts as success, fixed beforehand.
    inside : {"none", "law", "model"}
        Interval in which the outcome must lie as well: that if the law is true, or that if it is only a law.

    Returns
    -------
    Path
        ID is the first 12 hex digits of the SHA-256 of the content but for the time of registration.

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
        "threshold_inside": inside,
        "noise": fit.noise.source,
        "method": fit.method,
        "extrapolation": extrapolation(fit, params=n, tokens=d),
        "draws": [float(v) for v in sample * np.exp(noise)],
        "runs": [str(run) for run in fit.frame["run_id"]],
    }
    identity = _identity(record)
    head = {"forecast_id": identity, "registered_at": _now()}
    return write_text(root / f"{identity}.json", json.dumps({**head, **record}, indent=1) + "\n")


def score(forecast: Mapping[str, Any], observed: float, *, folder: str | Path | None) -> dict[str, Any]:
    """Hold a forecast against the outcome by the thresholds that were registered.

    Parameters
    ----------
    folder : path, optional
        Results folder: the first score is kept there (``forecasts/scores/ID.json``), so that another outcome later is seen.

    Returns
    -------
    dict
        verdict: "accepted" or "missed"; notes: what is irregular, in words ("" when nothing is).
    """
    error = forecast["predicted"] / observed - 1
    accepted = abs(error) <= forecast["threshold_relative_error"]
    ends = {"law": ("pi_low", "pi_high"), "model": ("pi_model_low", "pi_model_high")}.get(str(forecast.get("threshold_inside")))
    if ends is not None:
        low, high = (forecast.get(end) for end in ends)
        accepted = accepted and low is not None and high is not None and low <= observed <= high
    verdict, notes = "accepted" if accepted else "missed", [forecast.get("notes", "")]
    if folder is not None:
        path = Path(folder) / "forecasts" / "scores" / f"{forecast['forecast_id']}.json"
        if path.is_file():
            try:
                before = float(json.loads(path.read_text(encoding="utf-8"))["observed"])
                changed = f"scored before against {before:.6g}; that score stands in {path.name}" if before != observed else ""
            except (ValueError, KeyError, TypeError):
                changed = f"its first score is damaged ({path.name})"
            notes.append(changed)
        else:
            found = {"forecast_id": forecast["forecast_id"], "observed": observed, "relative_error": error, "verdict": verdict}
            write_text(path, json.dumps({**found, "scored_at": _now()}, indent=1) + "\n")
    return {"verdict": verdict, "notes": "; ".join(note for note in notes if note)}


def _identity(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(record), sort_keys=True).encode()).hexdigest()[:12]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def read_forecasts(folder: str | Path) -> list[dict[str, Any]]:
    """Return the registered forecasts of a results folder, in the order of their targets' run ids, each with `notes`.

    The notes say what is irregular: content that is not what was registered (its hash is the file's name), two forecasts of one run, a run
    that was trained under another forecast than this.

    Raises
    ------
    UserError
        When a file is no forecast.
    """
    found = _forecast_files(folder)
    targets = Counter(str(record["target"].get("run_id")) for _, record in found)
    told = [{**record, "notes": "; ".join(_irregular(path, record, targets, Path(folder)))} for path, record in found]
    return sorted(told, key=lambda r: (str(r["target"].get("run_id")), r["forecast_id"]))


def _irregular(path: Path, record: Mapping[str, Any], targets: Counter[str], folder: Path) -> list[str]:
    """What is wrong with a forecast's records."""
    run_id, notes = str(record["target"].get("run_id")), []
    content = {key: value for key, value in record.items() if key not in ("forecast_id", "registered_at")}
    if not _identity(content) == record["forecast_id"] == path.stem:
        notes.append("changed after it was registered")
    if targets[run_id] > 1:
        notes.append(f"one of {targets[run_id]} forecasts of this run")
    config = folder / "runs" / run_id / "config.json"
    if config.is_file():
        try:
            under = json.loads(config.read_text(encoding="utf-8")).get("forecast")
        except ValueError:
            under = "unknown (its config.json is damaged)"
        if under != path.stem:
            notes.append(f"the run was trained under forecast {under or 'none'}")
    return notes


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
