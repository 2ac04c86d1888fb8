"""Which hold-out runs have a registered forecast (written by `analysis.forecast`, before the hold-out's trunk starts).

The run's record holds a copy of the forecast that it was trained under, so that a damaged or changed one is restored.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaling.record import Folder, Resolved, set_aside, write_atomic

COPY = "forecast.json"


def forecast_of(folder: Folder, run_id: str) -> Path | None:
    """The forecast registered for a hold-out run (its name is its hash), or None."""
    for path in sorted(folder.forecasts.glob("*.json")):
        record = _read(path)
        if record is not None and record["target"].get("run_id") == run_id:
            return path
    return None


def mend_forecasts(folder: Folder, resolved: Resolved, *, notify: Callable[[str], None]) -> None:
    """Restore forecasts from the records of finished hold-outs, which are intact; what cannot be read is set aside and named."""
    for run in resolved.runs:
        copy = folder.run(run.run_id) / COPY
        if run.role != "holdout" or not copy.exists():
            continue
        registered, name = copy.read_bytes(), json.loads((copy.parent / "config.json").read_bytes())["forecast"]
        path = folder.forecasts / f"{name}.json"
        if path.exists() and path.read_bytes() == registered:
            continue
        aside = f" (set aside: {set_aside(path)})" if path.exists() else ""
        write_atomic(path, registered)
        notify(f"forecast restored as it was registered, from the run's record: {path}{aside}")
    for path in sorted(folder.forecasts.glob("*.json")):
        if _read(path) is None:
            notify(f"damaged forecast set aside; a run that was trained under it counts as not forecast: {set_aside(path)}")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes())
        return record if isinstance(record["target"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
