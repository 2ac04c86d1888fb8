"""What the layouts of foreign tables need beyond renaming: readers of files that are no plain table, and last touches."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import numbers
from analysis.errors import UserError
from analysis.frames import Frame
from analysis.reading import is_blank, read_bytes, read_table


def known(ours: Frame, name: str) -> np.ndarray:
    """A column as numbers; NaN also where it is text (`read_runs` tells where)."""
    return pd.to_numeric(ours[name], errors="coerce").to_numpy(dtype=np.float64)


def leave_out(ours: Frame, rows: np.ndarray, status: str, reason: str) -> None:
    """Give rows a status other than done, and why."""
    ours.loc[rows, "status"] = status
    ours.loc[rows, "reason"] = reason


def last_of_each(run: str, step: str) -> Callable[[Path], Frame]:
    """Reader of a table of curves that keeps the last point of each run, in the order in which runs first appear."""

    def read(path: Path) -> Frame:
        table = read_table(path)
        if run not in table or step not in table:
            return table
        last = numbers(table[step], step, path)
        table = table.assign(_last=last).sort_values("_last", kind="stable", na_position="first")
        return table.groupby(run, sort=False).tail(1).drop(columns="_last").sort_index().reset_index(drop=True)

    return read


def read_json(path: Path) -> Any:
    """Read a JSON file, plain or compressed by gzip."""
    try:
        return json.loads(read_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"{path}: is no JSON; give the file as published") from None


def read_gadre(path: Path) -> Frame:
    """One row a model: its settings, and the loss on every evaluation set."""
    rows = []
    try:
        for model in read_json(path):
            row = {key: str(value) for key, value in model["hyperparameters"].items()}
            row |= {"name": model["name"], "dataset_name": model["dataset_name"]}
            for result in model["results"]:
                name = result["val_data"][0].split("/")[-2]
                row |= {f"loss_{name}": repr(result["loss"]), f"{name}_low": repr(result["loss_sequences_lower_95"])}
                row[f"{name}_high"] = repr(result["loss_sequences_upper_95"])
            rows.append(row)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: no models.json of Gadre et al.: {type(error).__name__} {error}; see `scaling import list`") from None
    return pd.DataFrame(rows, dtype=object).fillna("").rename(columns={"loss_c4_val": "c4_val"})


def read_datablations(path: Path) -> Frame:
    """Names are MODEL TOKENS UNIQUE VARIANT (2b855b11bc4seed1: 2.8e9, 55e9, 11e9); the file itself says what the sizes stand for."""
    document = read_json(path)
    try:
        sizes, amounts, losses = document["PARAMS_MAP"], document["TOKENS_MAP"], document["NAMES_TO_VAL_LOSSES"]
    except (KeyError, TypeError):
        raise UserError(f"{path}: no val_losses.json of datablations (PARAMS_MAP, TOKENS_MAP, NAMES_TO_VAL_LOSSES are missing)") from None
    # 12b, 400m, 4b; 4b8 is 4.8e9 (decimals follow one digit only), and no digit follows the second amount: this leaves one reading.
    amount = "|".join([*sorted(amounts, key=len, reverse=True), r"[1-9]\d{0,2}[bm]", r"[1-9]b\d{1,2}"])
    pattern = re.compile(rf"({'|'.join(sorted(sizes, key=len, reverse=True))})({amount})({amount})(?!\d)(.*)")
    rows = []
    for name, loss in losses.items():
        found = pattern.fullmatch(name)
        if found is None:
            raise UserError(f"{path}: run {name!r} is not MODEL TOKENS UNIQUE; its name tells its sizes")
        tokens, unique = (1e9 * amounts[text] if text in amounts else _amount(text) for text in found.group(2, 3))
        seed = re.search(r"seed(\d+)", found.group(4))
        group = "c4-dedup" if "dedup" in found.group(4) else "c4"
        numbers = [repr(float(value)) for value in (sizes[found.group(1)], tokens, unique)]
        rows.append([name, *numbers, repr(loss) if loss else "", group, seed.group(1) if seed else "", found.group(4)])
    return pd.DataFrame(rows, columns=["run_id", "params", "tokens", "unique_tokens", "loss", "group", "seed", "variant"], dtype=object)


def _amount(text: str) -> float:
    """4b8 -> 4.8e9."""
    unit = "b" if "b" in text else "m"
    return float(text.replace(unit, ".")) * {"b": 1e9, "m": 1e6}[unit]


def finish_epoch(ours: Frame) -> list[str]:
    """Mark the rows of the published fit: losses strictly below the fifth largest."""
    loss = known(ours, "loss")
    ours["in_fit"] = (loss < np.sort(loss)[-5]).astype(float) if len(loss) >= 5 else 1.0
    return ["in_fit = 0 marks the five highest losses, which the publication left out: --exclude 'in_fit == 0'"]


def finish_sldbench(ours: Frame) -> list[str]:
    """Put tokens and unique tokens in their places where the file has them swapped."""
    share = float((known(ours, "tokens_unique") > known(ours, "tokens")).mean())
    if share <= 0.5:
        return []
    ours[["tokens", "tokens_unique"]] = ours[["tokens_unique", "tokens"]].to_numpy()
    ours["flops"], ours["flops_6nd"] = (6 * known(ours, "params") * known(ours, "tokens") for _ in range(2))
    return [
        f"tokens and unique_tokens are swapped in this file ({100 * share:.0f} % of rows have more unique tokens than tokens): swapped back"
    ]


def finish_steplaw(ours: Frame) -> list[str]:
    """Leave out the rows whose D cannot be true."""
    odd = is_blank(ours["d_model"]).to_numpy() & (known(ours, "tokens") >= 1e13)
    leave_out(ours, odd, "suspect", "D = 1e13 and no architecture in the file: a data error")
    return [f"{odd.sum()} rows with D = 1e13 and no architecture are a data error: status suspect, not fitted"] if odd.any() else []


def finish_datablations(ours: Frame) -> list[str]:
    """Runs with loss 0 were never run."""
    empty = is_blank(ours["loss"]).to_numpy()
    leave_out(ours, empty, "missing", "loss 0 in the file: not run")
    return [f"{empty.sum()} runs have loss 0 in the file: status missing"] if empty.any() else []


def finish_olmo(ours: Frame) -> list[str]:
    """Give cooldowns the trunk that they leave."""
    stable = ours["group"].str.endswith(("-const", "-decay"))
    ours["trunk_id"] = ours["trunk_id"].where(~stable, "const-" + ours["size"])
    return ["cooldowns (-decay) leave the constant-rate run (-const) of their size: one trunk_id; the -const runs end without a cooldown"]


def finish_tidy(ours: Frame) -> list[str]:
    """Leave out what the file itself calls suspect."""
    odd = (known(ours, "suspect") == 1) if "suspect" in ours else np.zeros(len(ours), dtype=bool)
    leave_out(ours, odd, "suspect", "flagged suspect in the file")
    return [f"{odd.sum()} rows are flagged suspect in the file: not fitted"] if odd.any() else []
