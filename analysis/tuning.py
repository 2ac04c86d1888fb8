"""Rates from a rate sweep: a parabola in log rate at every cell, a power law of its minima, and what the law's rate costs elsewhere.

The loss of a cell is flat at its best rate, so ``log loss = log loss* + bend (log rate - log rate*)^2`` near it (Porian et al. 2024 tune
the same way). A minimum that does not lie between the rates that were tried is not used: it is an extrapolation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t as student

from analysis.frames import Frame

LEVEL = 0.95
NEAR = 2  # rates on either side of the best that the parabola passes through: further out the loss is no parabola
CELL = ["params_non_embedding", "tokens", "batch_tokens"]
TUNING_COLUMNS = (
    "params_non_embedding d_model tokens batch_tokens n_rates n_runs n_stopped rate_low rate_high rate_best ci_low ci_high ci_level"
    " loss_best cost_of_factor_2 bracketed chosen rate_used penalty reason"
).split()
LAW_COLUMNS = "parameter estimate ci_low ci_high ci_level params tokens batch_tokens n_cells method".split()


@dataclass(frozen=True)
class Minimum:
    """The best rate of one cell.

    Attributes
    ----------
    rate, low, high : float
        Best rate and its interval (NaN where as many rates as the parabola has numbers were tried once).
    loss : float
        Nats per token, there.
    bend : float
        Relative loss per squared unit of log rate.
    bracketed : bool
        Whether the parabola opens upwards and its minimum lies between the rates tried.
    reason : str
        Why it is not bracketed.
    """

    rate: float
    low: float
    high: float
    loss: float
    bend: float
    bracketed: bool
    reason: str


@dataclass(frozen=True)
class RateLaw:
    """``rate = rate_at (N / params)^-params_power (D / tokens)^-tokens_power`` for the matrices, at `batch_tokens` a step.

    `params` and `tokens` are the geometric means of the tuned cells, where the rate is best known.
    """

    rate_at: float
    params: float
    tokens: float
    params_power: float
    tokens_power: float
    batch_tokens: float
    table: Frame

    def rate(self, params: float, tokens: float) -> float:
        """Rate at N parameters and D tokens (which count only where the law has a power of them)."""
        return self.rate_at * (params / self.params) ** -self.params_power * (tokens / self.tokens) ** -self.tokens_power


def minimum(rates: np.ndarray, losses: np.ndarray) -> Minimum:
    """Fit the parabola through the best rate and at most two on either side; several losses of one rate are seeds.

    Parameters
    ----------
    rates, losses : (n,)
        Finite losses only, nats per token.
    """
    x, y = np.log(rates), np.log(losses)
    levels = np.unique(np.round(x, 9))
    means = np.array([y[np.isclose(x, level)].mean() for level in levels])
    lowest, highest = float(np.exp(levels[0])), float(np.exp(levels[-1]))
    nothing = Minimum(float("nan"), float("nan"), float("nan"), float("nan"), float("nan"), False, "")
    best = int(means.argmin())
    if len(levels) < 3 or best in (0, len(levels) - 1):
        side = (
            "fewer than three rates"
            if len(levels) < 3
            else f"the best rate, {np.exp(levels[best]):.3g}, is the {'lowest' if best == 0 else 'highest'} tried"
        )
        return Minimum(**{**nothing.__dict__, "reason": side})
    near = levels[max(0, best - NEAR) : best + NEAR + 1]
    kept = (x >= near[0] - 1e-9) & (x <= near[-1] + 1e-9)
    x, y, centre = x[kept], y[kept], levels[best]
    design = np.stack([np.ones_like(x), x - centre, (x - centre) ** 2], axis=1)
    (level, slope, bend), *_ = np.linalg.lstsq(design, y, rcond=None)
    if bend <= 0 or not lowest < (rate := float(np.exp(centre - slope / (2 * bend)))) < highest:
        return Minimum(**{**nothing.__dict__, "reason": f"no minimum between {lowest:.3g} and {highest:.3g}"})
    half = float("nan")
    if (free := len(x) - 3) > 0:
        variance = float(((y - design @ [level, slope, bend]) ** 2).sum() / free) * np.linalg.inv(design.T @ design)
        gradient = np.array([0.0, -1 / (2 * bend), slope / (2 * bend**2)])
        half = float(student.ppf((1 + LEVEL) / 2, free) * math.sqrt(gradient @ variance @ gradient))
    loss = float(np.exp(level - slope**2 / (4 * bend)))
    return Minimum(rate, rate * math.exp(-half), rate * math.exp(half), loss, float(bend), True, "")


def tuning_table(rows: Frame) -> Frame:
    """tuning.csv: one row a cell (N, D, batch) of the tuning runs, with its best rate and what the law's rate costs there.

    Parameters
    ----------
    rows : DataFrame
        Rows of runs.csv with role `tune`: status, schedule, params_non_embedding, d_model, tokens, batch_tokens, learning_rate, loss.
        Runs that diverged or were stopped count as tried and have no loss.
    """
    cells: list[dict] = []
    for key, cell in rows.groupby(CELL, sort=True):
        done = cell[cell["status"] == "done"]
        found = minimum(done["learning_rate"].to_numpy(dtype=np.float64), done["loss"].to_numpy(dtype=np.float64)) if len(done) else None
        row = dict(zip(CELL, key, strict=True)) | {"d_model": cell["d_model"].iloc[0], "n_runs": len(cell), "ci_level": LEVEL}
        rates = cell["learning_rate"].astype(float)
        row |= {"n_rates": rates.nunique(), "n_stopped": int((cell["status"] == "stopped").sum())}
        row |= {"rate_low": rates.min(), "rate_high": rates.max(), "chosen": False}
        if found is None:
            cells.append(row | {"bracketed": False, "reason": "no run ended with a loss"})
            continue
        row |= {"rate_best": found.rate, "ci_low": found.low, "ci_high": found.high, "loss_best": found.loss}
        row |= {"cost_of_factor_2": math.expm1(found.bend * math.log(2) ** 2), "bracketed": found.bracketed, "reason": found.reason}
        cells.append(row)
    table = pd.DataFrame(cells, columns=TUNING_COLUMNS)
    if not len(table):
        return table
    table["chosen"] = _chosen(table, trunks=(rows["schedule"] == "trunk").all())
    law = rate_law(table)
    if law is not None:
        used = [law.rate(n, d) for n, d in zip(table["params_non_embedding"], table["tokens"], strict=True)]
        bend = np.log1p(table["cost_of_factor_2"].astype(float)) / math.log(2) ** 2
        off = np.log(np.array(used) / table["rate_best"].astype(float))
        table = table.assign(rate_used=used, penalty=np.expm1(bend * off**2))
    return table


def _chosen(table: Frame, *, trunks: bool) -> np.ndarray:
    """Cells that the law passes through: of the best batch; with trunks the middle amount of data, where one rate must serve all."""
    sizes = table.pivot_table(index=["params_non_embedding", "tokens"], columns="batch_tokens", values="loss_best", dropna=False).astype(
        float
    )
    batch = np.log(sizes).mean().idxmin() if sizes.notna().any(axis=None) else table["batch_tokens"].iloc[0]
    chosen = (table["batch_tokens"] == batch).to_numpy().copy()
    if trunks:
        for _, cell in table[chosen].groupby("params_non_embedding"):
            amounts = np.sort(cell["tokens"].unique())
            middle = amounts[(len(amounts) - 1) // 2] if len(amounts) != 2 else amounts[-1]
            chosen &= ~((table["params_non_embedding"] == cell["params_non_embedding"].iloc[0]) & (table["tokens"] != middle)).to_numpy()
    return chosen


def rate_law(table: Frame) -> RateLaw | None:
    """Fit the power law of the best rates of the chosen cells; None unless every chosen cell has its minimum between its rates.

    One size: a constant; several: a power of N; several amounts of data at independent runs: a power of D too. Intervals are Student's t
    on what the cells leave over; with as many cells as numbers there are none.
    """
    cells = table[table["chosen"].astype(bool)]
    if not len(cells) or not cells["bracketed"].astype(bool).all():
        return None
    sizes, amounts, y = (np.log(cells[name].to_numpy(dtype=np.float64)) for name in ("params_non_embedding", "tokens", "rate_best"))
    x, z = sizes - sizes.mean(), amounts - amounts.mean()
    params, tokens = float(np.exp(sizes.mean())), float(np.exp(amounts.mean()))
    by_size, by_data = np.ptp(x) > 0.05, np.ptp(z) > 0.05
    columns = [np.ones_like(x), *([-x] if by_size else []), *([-z] if by_data else [])]
    names = ["rate", *(["params_power"] if by_size else []), *(["tokens_power"] if by_data else [])]
    design = np.stack(columns, axis=1)
    if np.linalg.matrix_rank(design) < len(names):
        return None
    found, *_ = np.linalg.lstsq(design, y, rcond=None)
    free = len(y) - len(names)
    half = np.full(len(names), np.nan)
    if free > 0:
        variance = float(((y - design @ found) ** 2).sum() / free) * np.linalg.inv(design.T @ design)
        half = student.ppf((1 + LEVEL) / 2, free) * np.sqrt(np.diag(variance))
    batch = float(cells["batch_tokens"].iloc[0])
    method = f"least squares through {len(cells)} minima; " + (
        f"Student's t, {free} degrees of freedom" if free else "as many cells as numbers: no interval"
    )
    rows = []
    for name, value, width in zip(names, found, half, strict=True):
        numbers = (value, value - width, value + width)
        rows.append((name, *(np.exp(numbers) if name == "rate" else numbers), LEVEL, params, tokens, batch, len(cells), method))
    value = dict(zip(names, found, strict=True))
    return RateLaw(
        rate_at=math.exp(value["rate"]), params=params, tokens=tokens, params_power=float(value.get("params_power", 0.0)),
        tokens_power=float(value.get("tokens_power", 0.0)), batch_tokens=batch, table=pd.DataFrame(rows, columns=LAW_COLUMNS),
    )  # fmt: skip


def tuning_verdict(rows: Frame, table: Frame) -> str:
    """Say in one line whether the rates of the fitted runs are tuned, and the evidence.

    Parameters
    ----------
    rows : DataFrame
        All rows of runs.csv; the column `tuning` says where the rates of a run come from.
    table : DataFrame
        tuning.csv.
    """
    fitted = rows[rows["role"] == "fit"] if "role" in rows else rows
    sources = sorted(set(fitted["tuning"].astype(str)) - {"", "nan"}) if "tuning" in fitted else []
    if sources == ["tuned"] and len(table):
        law = rate_law(table)
        assert law is not None
        cells = table[table["chosen"].astype(bool)]
        powers = "".join(
            f", {row.parameter.split('_')[0]} to the power of -({row.estimate:.2g}{_band(row)})"
            for row in law.table.itertuples()
            if row.parameter != "rate"
        )
        head = law.table.iloc[0]
        count = table["n_stopped"].sum()
        stopped = f"{count} of {table['n_runs'].sum()} tuning runs were stopped early (early.csv); " if count else ""
        worst = 100 * float(table[table["batch_tokens"] == law.batch_tokens]["penalty"].max())
        return (
            f"tuned here: rate {head['estimate']:.3g}{_band(head)} at {law.params:.3g} parameters{powers}; {len(cells)} cells on the tuning"
            f" text, every minimum between its rates; {stopped}the law's rate costs at most {worst:.2g} % at the cells tried (tuning.csv)"
        )
    if sources == ["recipe"]:
        return "not tuned here: the recipe's rates, whose own tuning is in docs/recipe.md"
    if sources == ["set"]:
        return "not tuned: rates set by hand in the sweep file"
    return f"mixed: {', '.join(sources)}" if sources else ""


def _band(row) -> str:
    low, high = (row.ci_low, row.ci_high) if hasattr(row, "ci_low") else (row["ci_low"], row["ci_high"])
    return f" [{low:.2g}, {high:.2g}]" if math.isfinite(low) else ""
