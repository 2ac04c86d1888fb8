"""Published numbers beside ours: every target of a folder of published data, as a Markdown table.

Run: .venv/bin/python benchmarks/replications.py [FOLDER]      (about ten seconds; FOLDER: published data, default ../shared/published)

Targets are read from FOLDER/expected.json. A tolerance for all numbers of a target is relative, absolute below 1, and never finer than half
a unit of the last printed digit. tests/test_published.py runs the same comparisons.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import analysis
from analysis.allocation import fit_allocation
from analysis.curve_law import PARAMETERS, curve_errors, multi_power_loss
from analysis.isoflop import isoflop_optima
from analysis.newton import robust
from analysis.presets import Preset
from analysis.search import resolve

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "published"
DRAWS, THEIR_DRAWS = 12_000, 4000
SCALED = "E + A*(params/1e6)**-alpha + B*(tokens/1e9)**-beta"
GADRE = "E + alpha*params**b + beta*6**(b/2)*(token_multiplier_M*params)**b | E > 0, alpha > 0, beta > 0, -1 < b < 0"
#: Law, loss and link of the targets that are one fit.
FITS = {
    "besi-huber": ("chinchilla", "huber:1e-3", "log"),
    "besi-headline-lad": ("chinchilla", "lad", "log"),
    "besi-217-mse": (SCALED, "mse", "linear"),
    "besi-217-logmse": (SCALED, "mse", "log"),
    "besi-217-huber": (SCALED, "huber:1e-3", "linear"),
    "takano": ("chinchilla", "asymmetric:10", "linear"),
    "clark-dense": ("kaplan-n", "mse", "log"),
}
EXACT = "a from their optima"
NEGATED = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
Target = Mapping[str, Any]
Values = dict[str, float]


@dataclass(frozen=True)
class Figure:
    """One published number and ours."""

    target: str
    quantity: str
    published: float
    ours: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether ours lies within the tolerance."""
        return bool(abs(self.ours - self.published) <= self.tolerance)


def read_targets(folder: Path) -> list[Target]:
    """Every target of the folder, those with a note beside the data (EXTRA) last."""
    return [*json.loads((folder / "expected.json").read_text(encoding="utf-8")), *EXTRA]


def compare(target: Target, folder: Path) -> list[Figure]:
    """Run one target: each of its published numbers, and ours."""
    numbers = flatten({name: value for name, value in target["target"].items() if name not in ("params", "at")})
    numbers = {
        name: value for name, value in numbers.items() if not name.startswith("ci95")
    }  # Porian's intervals: from the noise of their runs
    ours = runner(target["id"])(target, folder)
    found = [Figure(target["id"], name, value, ours[name], tolerance(target, name, value)) for name, value in numbers.items()]
    exact = [Figure(target["id"], EXACT, numbers["a"], ours[EXACT], 1e-5)] if EXACT in ours else []
    return [*found, *exact]


def runner(name: str) -> Callable[[Target, Path], Values]:
    """Function that computes our numbers for the target of that id; KeyError when there is none."""
    return RUNNERS[name] if name in RUNNERS else RUNNERS[name.split("-")[0]]


def flatten(numbers: Mapping[str, Any]) -> Values:
    """``{"a": 1, "alpha": [2, 3], "metrics": {"R2": 4}}`` -> a, alpha low, alpha high, R2."""
    found: Values = {}
    for name, value in numbers.items():
        if isinstance(value, Mapping):
            found |= flatten(value)
        elif isinstance(value, list):
            found |= {f"{name} low": value[0], f"{name} high": value[1]}
        else:
            found[name] = value
    return found


def tolerance(target: Target, name: str, value: float) -> float:
    """Allowed difference of one number (see the top of this file)."""
    stated = target["tolerance"]
    if isinstance(stated, Mapping):
        return float(stated[name])
    if stated == "printed digits":
        return last_digit(value)
    if stated == "10 %":
        return 0.1 * abs(value)
    if stated == "about 5 % of each width":
        low, high = target["target"][name.split()[0]]
        return 0.05 * (high - low)
    return min(stated * max(1.0, abs(value)), max(stated * abs(value), last_digit(value)))


def last_digit(value: float) -> float:
    """Half a unit of the last digit that is written."""
    _, _, decimals = f"{value:f}".rstrip("0").partition(".") if "e" not in repr(value) else ("", "", "0" * 12)
    return 0.5 * 10.0 ** -len(decimals) * (1 + 1e-9)


def read(target: Target, folder: Path) -> analysis.Runs:
    """Runs of a target's file and row filter, N as its authors count it."""
    return analysis.read_runs(folder / target["file"], n_column="params", loss_column="loss", exclude=left_out(target["where"]))


def left_out(where: str) -> str | None:
    """``a==1 and b<2`` (rows wanted) -> ``a != 1 or b >= 2`` (rows to leave out)."""
    if where == "all":
        return None
    parts = []
    for part in where.split(" and "):
        sign = next(sign for sign in ("<=", ">=", "==", "!=", "<", ">") if sign in part)
        column, value = part.split(sign)
        parts.append(f"{column.strip()} {NEGATED[sign]} {value.strip()}")
    return " or ".join(parts)


def run_fit(target: Target, folder: Path) -> Values:
    """A target that is one fit."""
    law, loss, link = FITS[target["id"]]
    found = analysis.fit(law, read(target, folder), loss=loss, link=link)
    mean = found.objective / found.n_runs if target["id"] == "takano" else found.objective
    return {**found.params, "objective": mean, "RSS": found.objective, "a": found.params.get("alpha_N", np.nan)}


def run_bootstrap(target: Target, folder: Path) -> Values:
    """Percentile intervals and standard errors by our own draws: three times as many, for B's standard error is one of a heavy tail."""
    found = drawn(folder / target["file"], left_out(target["where"]))
    table = found.parameter_table().set_index("parameter")
    assert found.draws is not None
    share = found.draws["beta"] / (found.draws["alpha"] + found.draws["beta"])
    values = {name: float(error) for name, error in table["std_error"].items()} | {"a": float(share.std(ddof=1))}
    return values | {f"{name} {end}": float(row[f"ci_{end}"]) for name, row in table.iterrows() for end in ("low", "high")}


@cache
def drawn(path: Path, exclude: str | None) -> analysis.Fit:
    """Chinchilla's fit with pairs draws, which two targets share."""
    return analysis.bootstrap(
        analysis.fit("chinchilla", analysis.read_runs(path, n_column="params", exclude=exclude), loss="huber:1e-3"),
        draws=DRAWS,
        method="pairs",
    )


def run_stream(target: Target, folder: Path) -> Values:
    """Draws of the authors' own random stream, each solved to its minimum: standard errors, and the first draw."""
    found = analysis.fit("chinchilla", read(target, folder), loss="huber:1e-3")
    stream = np.random.RandomState(42)
    picks = [stream.choice(found.n_runs, size=found.n_runs) for _ in range(THEIR_DRAWS)]
    weights = np.array([np.bincount(pick, minlength=found.n_runs) for pick in picks], dtype=np.float64)
    problem = found.solution.problem
    theta, _ = resolve(found.solution, problem, np.tile(found.solution.theta, (THEIR_DRAWS, 1)), weights)
    draws = problem.model.decode(theta)
    return {f"SE of {name}": float(values.std(ddof=1)) for name, values in draws.items()} | {
        f"first {name}": float(values[0]) for name, values in draws.items()
    }


def run_at_hoffmann(target: Target, folder: Path) -> Values:
    """Huber's objective of the 240 points at Hoffmann's coefficients."""
    a, b, e, alpha, beta = target["target"]["at"]
    law = {"E": np.exp(e), "A": np.exp(a), "B": np.exp(b), "alpha": alpha, "beta": beta}
    frame = read(target, folder).frame
    r = np.log(analysis.LAWS["chinchilla"].predict(law, N=frame["N"], D=frame["D"]) / frame["loss"])
    return {"objective": float(robust(r.to_numpy(), 1e-3).sum())}


def run_porian(target: Target, folder: Path) -> Values:
    """Exponent of our Akima optima, with the published weights, and (`from their optima`) of the published optima."""
    group = target["id"].removeprefix("porian-")
    pairs = pd.read_csv(folder / "porian2024" / "published_optimal_pairs.csv")
    pairs = pairs[pairs["group"] == group].rename(columns={"n": "params_opt", "t": "tokens_opt"})
    runs = pd.read_csv(folder / target["file"])
    runs = runs[runs["group"] == group].reset_index(drop=True)
    ours = isoflop_optima(runs.assign(N=runs["n_as_counted"], D=runs["tokens"], C=runs["flops"]), method="interpolated")
    spread = pairs.set_index(pairs["flops"].map("{:.5g}".format))["n_star_std"].reindex(ours["flops"].map("{:.5g}".format))
    return {
        "a": fit_allocation(ours, weights=spread.to_numpy() ** -2.0).a,
        EXACT: fit_allocation(pairs, weights=pairs["n_star_std"].to_numpy() ** -2.0).a,
    }


def run_gadre(target: Target, folder: Path) -> Values:
    """Four parameters from five runs (a fit that says it cannot be checked); errors of the large models."""
    runs = read(target, folder)
    fitted = analysis.fit(GADRE, runs, loss="mse", link="linear")
    law, found = fitted.law, fitted.params
    group = target["where"].split("'")[1]
    large = analysis.read_runs(
        folder / target["file"], n_column="params", loss_column="loss", exclude=f"group != {group} or params < 1e9"
    ).frame
    error = np.abs(law.predict(found, **{name: large[name].to_numpy() for name in law.variables}) / large["loss"] - 1)
    labels = zip(large["N"], large["token_multiplier_M"], error, strict=True)
    return found | {f"rel_err_{1 if n < 2e9 else 7}b_M{over:.0f}": float(e) for n, over, e in labels}


def run_mpl(target: Target, folder: Path) -> Values:
    """Mean errors over the test curves of the multi-power law at its published parameters."""
    curves = pd.read_csv(folder / target["file"])
    curves = curves[(curves["model"] == target["id"].removeprefix("mpl-")) & (curves["split"] == "test")]
    params: dict[str, float] = dict(zip(PARAMETERS, target["target"]["params"], strict=True))
    found = []
    for schedule, curve in curves.groupby("schedule"):
        predicted = multi_power_loss(params, learning_rates(str(schedule)), steps=curve["step"].to_numpy())
        found.append(curve_errors(predicted, curve["loss"].to_numpy()))
    names = {"R2": "r2", "MAE": "mae", "RMSE": "rmse", "PredE": "mean_relative", "WorstE": "worst_relative"}
    return {name: float(np.mean([getattr(errors, ours) for errors in found])) for name, ours in names.items()}


def learning_rates(name: str) -> np.ndarray:
    """Schedules of Luo et al. 2025: 2,160 steps of warm-up to 3e-4, then as the name says."""
    kind, *numbers = name.split("_")
    length = 16000 if kind == "wsdcon" else int(numbers[-1])
    steps, peak, fall = np.arange(2160, length), 3e-4, 2.7e-4
    rates = {
        "constant": lambda: np.full(len(steps), peak),
        "cosine": lambda: peak - fall * (1 - np.cos(np.pi * (steps - 2160) / (length - 2160))) / 2,
        "wsd": lambda: peak * 10.0 ** -np.clip((steps - 20000) / 4000, 0, 1),
        "wsdld": lambda: peak - fall * np.clip((steps - 20000) / 4000, 0, 1),
        "wsdcon": lambda: np.where(steps < 8000, peak, 1e-5 * int(numbers[0])),
    }
    return np.concatenate([np.linspace(0, peak, 2160), rates[kind]()])


def run_datablations(target: Target, folder: Path) -> Values:
    """Objective at the published parameters, and the least one over R_D and R_N."""
    runs = read(target, folder)
    loss = runs.frame["loss"].where(runs.frame["run_id"] != "db-7m100m100m", 8.102005)  # as SLDBench has that run
    frame = runs.frame.assign(loss=loss)
    preset = analysis.PRESETS["muennighoff2023"]
    assert isinstance(preset, Preset)
    left = np.log(preset.predict(N=frame["N"], D=frame["D"], U=frame["U"]) / loss)
    formula = re.sub(r"\b(alpha|beta|A|B|E)\b", lambda name: repr(preset.params[name[0]]), preset.law.formula)
    best = analysis.fit(f"{formula} | 0 < R_D < 1000, 0 < R_N < 1000", replace(runs, frame=frame), loss="huber:1e-3")
    return {"objective": float(robust(left.to_numpy(), 1e-3).sum()), "best_possible": best.objective}


def run_allocation(target: Target, folder: Path) -> Values:
    """Exponents of published optima."""
    column, _, value = target["where"].partition("==")
    table = pd.read_csv(folder / target["file"])
    table = table[table[column].astype(str) == value.strip("'")]
    table = table.rename(columns={"params": "params_opt", "tokens": "tokens_opt", "flops_6nd": "flops", "flops_inferred": "flops"})
    found = fit_allocation(table)
    return {"a": found.a, "b": found.b}


RUNNERS: Mapping[str, Callable[[Target, Path], Values]] = {
    **dict.fromkeys(FITS, run_fit),
    **dict.fromkeys(("besi-bootstrap-ci", "besi-se"), run_bootstrap),
    "besi-stream": run_stream,
    "besi-objective-at-hoffmann": run_at_hoffmann,
    "porian": run_porian,
    "gadre": run_gadre,
    "mpl": run_mpl,
    "datablations": run_datablations,
    "hoffmann": run_allocation,
    "nanochat": run_allocation,
}

NANOCHAT = {"file": "nanochat2026/isoflop_optima.csv", "tolerance": {"a": 0.0051, "b": 0.0051}, "objective": "OLS"}
#: Published numbers that expected.json leaves out.
EXTRA: tuple[Target, ...] = (
    {"id": "besi-stream", "file": "besiroglu2024/tidy.csv", "where": "in_fit==1", "objective": "Huber(1e-3), np.random.seed(42)",
     "tolerance": 5e-4, "target": {
         "SE of E": 0.02566, "SE of A": 124.52, "SE of B": 1293.28, "SE of alpha": 0.0154, "SE of beta": 0.0206,
         "first E": 1.79333, "first A": 349.556372, "first B": 2356.248315, "first alpha": 0.328633, "first beta": 0.371855,
     }},
    {"id": "hoffmann-A1", "file": "hoffmann2022_tables/optimal_tokens.csv", "where": "approach==1", "objective": "OLS", "tolerance": 0.005,
     "target": {"a": 0.50, "b": 0.50}},
    {**NANOCHAT, "id": "nanochat-chinchilla", "where": "param_counting=='chinchilla'", "target": {"a": 0.37, "b": 0.50}},
    {**NANOCHAT, "id": "nanochat-transformer", "where": "param_counting=='transformer_only'", "target": {"a": 0.70, "b": 0.41}},
)  # fmt: skip


def table(figures: list[Figure]) -> str:
    """Markdown: one row a target."""
    lines = ["| target | published | ours | largest difference, of what is allowed |", "|---|---|---|---|"]
    for name in dict.fromkeys(figure.target for figure in figures):
        own = [figure for figure in figures if figure.target == name]
        published = ", ".join(f"{f.quantity} {f.published:.10g}" for f in own)
        ours = ", ".join(f"{f.ours:.{digits(f.published)}g}" for f in own)
        worst = max(abs(f.ours - f.published) / f.tolerance for f in own)
        lines.append(f"| {name.replace('|', ' ')} | {published} | {ours} | {100 * worst:.0f} %{'' if worst <= 1 else ' **differs**'} |")
    return "\n".join(lines)


def digits(value: float) -> int:
    """Return the significant digits to show: one more than are published."""
    return len(f"{value:.10g}".replace(".", "").replace("-", "").lstrip("0")) + 1


def main() -> None:
    """Print the table, and how many numbers agree."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    if not (folder / "expected.json").is_file():
        sys.exit(f"{folder}: holds no expected.json; give the folder of published data: benchmarks/replications.py FOLDER")
    figures = [figure for target in read_targets(folder) for figure in compare(target, folder)]
    print(table(figures))
    print(f"\n{sum(f.agrees for f in figures)} of {len(figures)} numbers of {len({f.target for f in figures})} targets agree.")


if __name__ == "__main__":
    main()
