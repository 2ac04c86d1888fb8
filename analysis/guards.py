"""What a reader should know about a table of runs before trusting a law fitted to it.

What makes a fit meaningless is refused by `analysis.runs.read_runs` (text, zero, negative or infinite N, D, loss or FLOPs). What may be
meant is a warning here, with its remedy. Nothing is dropped or changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.frames import Column, Frame
from analysis.runs import COPY_REASON, Runs

SAME_LEVEL = 0.02  # values of N or D within 2 % are one level
TIED = 0.01  # share of the variance of log D that must not be a power of N
UNTUNED = 0.05  # median spread of the loss inside a cell (best to worst, relative) that no seed explains
UNTUNED_SETTINGS = 0.02  # the same where a setting of training differs inside the cells
GAP = 1e3  # neighbouring values of one column this far apart are two units
LOSS_RANGE = (0.1, 20.0)  # nats per token
OUTLIER = 12.0  # robust standard deviations from a smooth surface
OUTLIER_LEAST = 0.1  # and at least this far, relative
SETTINGS = (
    "lr learning_rate peak_lr batch_tokens batch_seqs batch_size bs warmup_steps warmup wd weight_decay beta1 beta2 schedule decay hparams"
    " optimizer num_experts dropout"
).split()


@dataclass(frozen=True)
class Finding:
    """Something to know about the runs.

    Attributes
    ----------
    kind : str
        One word for the guard that found it (docs/foreign.md lists them).
    message : str
        What and where, in one line.
    remedy : str
        What to do about it.
    """

    kind: str
    message: str
    remedy: str

    def __str__(self) -> str:
        """One line: what, then what to do."""
        return f"{self.message}; {self.remedy}"


def check_runs(runs: Runs) -> list[Finding]:
    """Look for what commonly spoils a law: units, groups, copies, untuned runs, N and D that move together.

    Returns
    -------
    list of Finding
        Most serious first; empty when nothing was found.
    """
    frame = runs.frame
    if not len(frame):
        return []
    units = _units(runs)
    found = [
        *units,
        *_unlike_6nd(runs, units),
        *_loss_units(runs),
        *_groups(frame),
        *_unique_tokens(frame),
        *_untuned(frame),
        *_axes(runs),
        *_repeats(runs),
        *_gaps(runs),
        *_numerics(frame),
    ]
    kinds = {finding.kind for finding in found}
    return found if kinds & {"units", "untuned", "groups"} else [*found, *_outliers(frame)]


def _units(runs: Runs) -> list[Finding]:
    """N or D in millions or billions, or a column that mixes units."""
    found = []
    for name, column in (("N", runs.n_column), ("D", runs.d_column)):
        values = np.sort(runs.frame[name].to_numpy())
        steps = values[1:] / values[:-1]
        if len(steps) and steps.max() >= GAP:
            at = int(steps.argmax())
            found.append(
                Finding(
                    "units",
                    f"column {column} mixes units: {at + 1} rows up to {values[at]:.4g}, the others from {values[at + 1]:.4g}",
                    f"correct the file, or leave one part out: --exclude '{column} {_side(at + 1, len(values))} {values[at + 1]:.6g}'",
                )
            )
    if found:
        return found
    n, d = float(runs.frame["N"].median()), float(runs.frame["D"].median())
    small = [(runs.n_column, n, "parameters")] if n < 1e3 or d / n > 1e6 else []
    small += [(runs.d_column, d, "tokens")] if d < 1e3 or d / n < 1e-3 else []
    return [
        Finding(
            "units",
            f"column {column} has a median of {middle:.4g} {word} (the other of N and D: {d if word == 'parameters' else n:.4g}):"
            " millions or billions?",
            f"bring it to single {word}: scaling import columns FILE --unit {column}=1e6 (or 1e9)",
        )
        for column, middle, word in small
    ]


def _side(small: int, rows: int) -> str:
    """Leave out the smaller part."""
    return "<" if 2 * small <= rows else ">="


def _unlike_6nd(runs: Runs, units: list[Finding]) -> list[Finding]:
    if runs.c_column != "flops":
        given = runs.all_rows.get("flops")
        filled = 0 if given is None or not pd.api.types.is_numeric_dtype(given) else int(given.notna().sum())
        if not filled:
            return []
        message = f"column flops is filled in {filled} of {len(runs.all_rows)} rows only, so C = 6 N D is used for all"
        return [Finding("flops", message, "fill it in, or leave the column out")]
    ratio = runs.frame["C"].to_numpy() / (6 * runs.frame["N"].to_numpy() * runs.frame["D"].to_numpy())
    far = (ratio > 10) | (ratio < 0.1)
    if not far.any() or units:
        return []
    first = runs.frame["run_id"].to_numpy()[far][0]
    message = (
        f"column flops is more than 10 times away from 6 N D in {far.sum()} of {len(far)} rows (run {first}: {ratio[far][0]:.3g} times)"
    )
    return [Finding("flops", message, f"check the units of flops, {runs.n_column} and {runs.d_column}")]


def _loss_units(runs: Runs) -> list[Finding]:
    name = runs.loss_column.lower()
    if "bpb" in name or "bits_per" in name or "bits per" in name:
        remedy = (
            "E, A and B are then in that unit; nats per token = bits per byte x 0.6931 x bytes per token (scaling import --map loss=...)"
        )
        return [Finding("loss_units", f"column {runs.loss_column} is in bits, not nats per token", remedy)]
    if "ppl" in name or "perplexity" in name:
        remedy = f"take its logarithm: scaling import columns FILE --map 'loss=log({runs.loss_column})'"
        return [Finding("loss_units", f"column {runs.loss_column} is a perplexity, not nats per token", remedy)]
    loss = runs.frame["loss"]
    odd = (loss < LOSS_RANGE[0]) | (loss > LOSS_RANGE[1])
    if not odd.any():
        return []
    first = runs.frame.loc[odd].iloc[0]
    low, high = LOSS_RANGE
    message = f"{odd.sum()} of {len(odd)} losses lie outside {low:g} to {high:g} nats/token (run {first['run_id']}: {first['loss']:.4g})"
    return [Finding("loss_range", message, "check the unit (an accuracy, a perplexity?), or leave them out with --exclude")]


def _groups(frame: Frame) -> list[Finding]:
    if "group" not in frame:
        return []
    names = [str(name) for name in frame["group"].value_counts().index]
    cells = frame.groupby("group")[["N", "D"]].nunique()
    if len(names) < 2 or (cells == 1).all(axis=None):  # a group that is one cell of N and D is no family of runs
        return []
    shown = ", ".join(names[:4]) + (f", and {len(names) - 4} more" if len(names) > 4 else "")
    message = f"the runs come from {len(names)} groups ({shown}), and one law for all of them is seldom right"
    return [Finding("groups", message, f"""fit one at a time: --exclude "group != '{names[0]}'" """.rstrip())]


def _unique_tokens(frame: Frame) -> list[Finding]:
    if "U" not in frame:
        return []
    more = frame["U"] > frame["D"] * (1 + SAME_LEVEL)
    if not more.any():
        return []
    message = f"{more.sum()} of {len(frame)} rows have more unique tokens than tokens seen"
    remedy = "unless a pool larger than what was seen is meant, the two columns are swapped: scaling import columns FILE"
    return [Finding("unique_tokens", message, f"{remedy} --map tokens=tokens_unique --map tokens_unique=tokens")]


def _untuned(frame: Frame) -> list[Finding]:
    """Losses of one cell (N, D, and what else makes runs differ by design) that lie further apart than seeds put them."""
    keys = [name for name in ("group", "N", "D", "U") if name in frame]
    cells = frame.groupby(keys, dropna=False)["loss"].agg(["size", "min", "max"])
    cells = cells[cells["size"] > 1]
    if not len(cells):
        return []
    spread = float((cells["max"] / cells["min"] - 1).median())
    several = frame.groupby(keys, dropna=False)
    differing = [name for name in SETTINGS if name in frame and float((several[name].nunique() > 1).sum()) > 0.5 * len(cells)]
    if spread < (UNTUNED_SETTINGS if differing else UNTUNED):
        return []
    cause = f" ({', '.join(differing[:4])} differ)" if differing else ""
    message = f"runs of the same N and D differ by {100 * spread:.3g} % in the median of {len(cells)} cells{cause}: more than seeds do"
    remedy = (
        "untuned runs bend the law; keep the best of each cell (scaling import FORMAT FILE --best), or choose one setting with --exclude"
    )
    return [Finding("untuned", message, remedy)]


def _axes(runs: Runs) -> list[Finding]:
    """Too few levels, or D a power of N: the law's terms cannot be told apart."""
    frame, found = runs.frame, []
    for name, column, other in (("N", runs.n_column, "power-d"), ("D", runs.d_column, "power-n")):
        count = _levels(frame[name])
        if count == 1:
            message = f"all runs have one {name} ({column} = {frame[name].median():.4g}): a law in {name} cannot be fitted"
            found.append(Finding("levels", message, f"vary {name}, or fit --law {other} only"))
        elif count == 2:
            message = (
                f"{name} has two levels only: intervals of a law's exponent in {name} mean little (coverage 0 to 38 % at a nominal 95 %)"
            )
            found.append(Finding("levels", message, f"add a third {name}"))
    x, y = np.log(frame["N"].to_numpy()), np.log(frame["D"].to_numpy())
    if found or len(frame) < 3:
        return found
    correlation = float(np.corrcoef(x, y)[0, 1])
    if 1 - correlation**2 > TIED:
        return []
    slope = float(np.sign(correlation) * y.std() / x.std())
    shape = f"tokens per parameter stay near {np.exp(np.median(y - x)):.3g}" if abs(slope - 1) < 0.1 else f"D moves as N^{slope:.2f}"
    message = f"N and D move together ({shape}): alpha and beta, A and B cannot be told apart"
    return [Finding("tied", message, "add runs that leave this line; until then trust predictions on the line only")]


def _levels(values: Column) -> int:
    """Distinct values, those within 2 % of each other being one."""
    logs = np.sort(np.log(values.to_numpy()))
    return 1 + int((np.diff(logs) > SAME_LEVEL).sum())


def _repeats(runs: Runs) -> list[Finding]:
    frame, found = runs.frame, []
    copies = int(runs.excluded["reason"].str.startswith(COPY_REASON).sum())
    if copies:
        message = f"{copies} rows are copies of another row in every column and count once"
        found.append(Finding("copies", message, "exclusions.csv names them; remove them from the file"))
    again = frame["run_id"][frame["run_id"].duplicated()]
    if len(again):
        message = f"{again.nunique()} run_ids stand in several rows (first: {again.iloc[0]}): points of one run are not independent"
        remedy = "they are taken for one trunk" if (frame["trunk_id"] == frame["run_id"]).all() else "give them one trunk_id"
        found.append(Finding("repeated_ids", message, f"{remedy}; where they are points of a curve, keep the last of each run"))
    same = frame[["N", "D", "loss"]].duplicated(keep=False)
    alone = same & ~frame["run_id"].duplicated(keep=False)
    if alone.any():
        message = (
            f"{alone.sum()} rows share N, D and loss with another row (first: {frame['run_id'][alone].iloc[0]}): two seeds seldom agree so"
        )
        found.append(Finding("duplicates", message, "if they are one run under two names, leave one out with --exclude"))
    return found


def _gaps(runs: Runs) -> list[Finding]:
    reasons = runs.excluded["reason"]
    counts = reasons[reasons.str.endswith("is empty or NaN")].value_counts()
    return [
        Finding("gaps", f"{count} of {len(runs.all_rows)} rows are left out: {reason}", "exclusions.csv names them")
        for reason, count in counts.items()
    ]


def _numerics(frame: Frame) -> list[Finding]:
    count = frame["numerics_id"].nunique() if "numerics_id" in frame else 0
    if count < 2:
        return []
    message = f"runs mix {count} numerics_id (machines or flags): losses may differ by more than seeds"
    return [Finding("numerics", message, "repeat some runs on one machine, or keep one with --exclude 'numerics_id != ...'")]


def _outliers(frame: Frame) -> list[Finding]:
    """Runs far from a smooth surface: a robust quadratic of log loss in log N, D and unique tokens (Huber, reweighted least squares)."""
    axes = [name for name in ("N", "D", "U") if name in frame and frame[name].notna().all()]
    if len(frame) < 6 * len(axes):
        return []
    z = np.log(frame["loss"].to_numpy())
    logs = [np.log(frame[name].to_numpy()) for name in axes]
    logs = [values - values.mean() for values in logs]
    pairs = [logs[i] * logs[j] for i in range(len(logs)) for j in range(i, len(logs))]
    design = np.column_stack([np.ones_like(z), *logs, *pairs])
    root = np.ones_like(z)
    for _ in range(30):
        left = z - design @ np.linalg.lstsq(design * root[:, None], z * root, rcond=None)[0]
        spread = max(1.4826 * float(np.median(np.abs(left))), 1e-6)
        root = np.sqrt(np.minimum(1, 1.345 * spread / np.maximum(np.abs(left), 1e-12)))
    far = np.abs(left) > max(OUTLIER * spread, OUTLIER_LEAST)
    if not far.any():
        return []
    worst = int(np.abs(left).argmax())
    run = frame.iloc[worst]
    message = (
        f"{far.sum()} of {len(frame)} runs lie far from all others (worst: {run['run_id']}, N {run['N']:.4g}, D {run['D']:.4g},"
        f" loss {run['loss']:.4g}, {100 * np.expm1(left[worst]):+.0f} %)"
    )
    return [Finding("outliers", message, "look at them; leave out with --exclude what is wrong for a known reason, and say so")]
