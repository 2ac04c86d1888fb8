"""Which hold-out runs have a registered forecast (written by `analysis.forecast`, before the hold-out's trunk starts)."""

import json

from scaling.record import Folder


def forecast_hash(folder: Folder, run_id: str) -> str | None:
    """Identity of the forecast registered for a hold-out run (its file name), or None."""
    for path in sorted(folder.forecasts.glob("*.json")):
        try:
            if json.loads(path.read_bytes())["target"]["run_id"] == run_id:
                return path.stem
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
