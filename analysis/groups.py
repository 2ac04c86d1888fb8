"""A law for each group of runs: for sweeps over several texts, whose losses no common law in N and D can describe."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import UserError
from analysis.files import write_table
from analysis.frames import Frame
from analysis.tables import analyse

SHOWN = ("E", "alpha", "beta")
GROUP_COLUMNS = (
    "group law n_runs status E E_low E_high alpha alpha_low alpha_high beta beta_low beta_high rmse_log bytes_per_token E_bits_per_byte"
    " lowest_loss lowest_bits_per_byte entropy E_holds_entropy note"
).split()


def groups_of(folder: str | Path) -> list[str]:
    """Groups in a results folder's runs.csv, in order of appearance; none when its runs are of one text, or it is no results folder."""
    if not (Path(folder) / "runs.csv").is_file():
        return []
    table = _read(folder)
    return [str(name) for name in dict.fromkeys(table["group"]) if name] if "group" in table else []


def _read(folder: str | Path) -> Frame:
    return pd.read_csv(Path(folder) / "runs.csv", dtype=str, keep_default_na=False)


def analyse_groups(folder: str | Path, *, out: str | Path | None = None, laws: Sequence[str], **settings: Any) -> Frame:
    """Fit the laws to each group apart; write groups.csv, and every group's tables to groups/NAME/, into the folder or `out`.

    Parameters
    ----------
    folder : path
        A results folder whose runs.csv has a filled column `group`.
    laws : sequence of str
        As in `analyse`; those that a group has too few runs for are left out there.
    **settings
        Of `analyse`.

    Returns
    -------
    DataFrame
        One row a group and law, with the columns `GROUP_COLUMNS` (docs/tables.md).
    """
    root, table = Path(out or folder), _read(folder)
    rows: list[dict[str, Any]] = []
    for group in groups_of(folder):
        part = table[table["group"] == group]
        target = root / "groups" / re.sub(r"[^A-Za-z0-9.]+", "-", group).strip("-")
        write_table(target / "runs.csv", part)
        rows += _rows(group, part, target, laws=laws, **settings)
    found = pd.DataFrame(rows, columns=GROUP_COLUMNS)
    write_table(root / "groups.csv", found)
    return found


def _rows(group: str, part: Frame, target: Path, *, laws: Sequence[str], **settings: Any) -> list[dict[str, Any]]:
    done = part[part["loss"] != ""]
    loss = done["loss"].astype(float)
    lowest = done.loc[loss.idxmin()] if len(done) else None
    known: dict[str, Any] = {"group": group, "n_runs": len(done)}
    if lowest is not None:
        known |= {"lowest_loss": float(lowest["loss"]), "lowest_bits_per_byte": _number(lowest["bits_per_byte"])}
        known |= {name: _number(lowest.get(name, "")) for name in ("bytes_per_token", "entropy")}
    try:
        analysis = analyse(target, laws=laws, **settings)
    except UserError as error:
        return [{**known, "note": f"no law: {error}"}]
    rows = []
    for fit in analysis.fits:
        row = {**known, "law": fit.law.name, "status": fit.status, "rmse_log": fit.rmse_log, "note": "; ".join(fit.warnings)}
        for entry in fit.parameter_table().to_dict("records"):
            if entry["parameter"] in SHOWN:
                name = str(entry["parameter"])
                row |= {name: entry["estimate"], f"{name}_low": entry["ci_low"], f"{name}_high": entry["ci_high"]}
        if "E" in row and lowest is not None:
            row["E_bits_per_byte"] = row["E"] * known["lowest_bits_per_byte"] / known["lowest_loss"]
            if math.isfinite(known["entropy"]):
                row["E_holds_entropy"] = bool(row["E_low"] <= known["entropy"] <= row["E_high"])
        rows.append(row)
    return rows


def _number(text: Any) -> float:
    return float(text) if str(text) else math.nan


def group_summary(found: Frame, notes: Sequence[str] = ()) -> str:
    """The table for the terminal, a line a group and law."""
    lines = [f"{'group':28} {'law':12} {'E [95 %]':24} {'alpha':>7} {'beta':>7} {'E bits/byte':>11} {'lowest':>8}"]
    for row in found.to_dict("records"):
        if pd.isna(row["law"]):
            lines.append(f"{str(row['group'])[:28]:28} {str(row['note'])[:100]}")
            continue
        interval = f"{row['E']:.3f} [{row['E_low']:.3f}, {row['E_high']:.3f}]" if np.isfinite(row["E"]) else ""
        lines.append(
            f"{str(row['group'])[:28]:28} {str(row['law'])[:12]:12} {interval:24} {row['alpha']:7.3f} {row['beta']:7.3f} "
            f"{row['E_bits_per_byte']:11.3f} {row['lowest_bits_per_byte']:8.3f}"
        )
    return "\n".join([*lines, *notes])
