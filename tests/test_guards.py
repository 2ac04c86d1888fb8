"""Guards: each on a table that must trigger it and one that must not, and on published tables whose faults are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.errors import UserError
from analysis.guards import Finding, check_runs
from analysis.runs import read_runs

PUBLISHED = Path(__file__).parents[2] / "shared" / "published"
REFERENCE = Path(__file__).parents[1] / "results" / "reference" / "quickstart"


def grid(seeds: int = 1) -> pd.DataFrame:
    """A sound table: 4 sizes x 4 amounts, 0.1 % noise."""
    rng = np.random.default_rng(0)
    rows = [(n, d) for n in (1e7, 3e7, 1e8, 3e8) for d in (1e9, 3e9, 1e10, 3e10) for _ in range(seeds)]
    table = pd.DataFrame(rows, columns=["params", "tokens"])
    loss = 1.7 + 400 / table["params"] ** 0.34 + 1000 / table["tokens"] ** 0.32
    table["loss"] = loss * np.exp(0.001 * rng.standard_normal(len(table)))
    table.insert(0, "run_id", [f"r{i}" for i in range(len(table))])
    return table


def findings(folder: Path, table: pd.DataFrame, **options) -> list[Finding]:
    table.to_csv(folder / "table.csv", index=False)
    return check_runs(read_runs(folder / "table.csv", **options))


def change(**columns: Callable) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table.assign(**columns)


def mixed_tokens(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(tokens=np.where(np.arange(16) < 4, table["tokens"] / 1e9, table["tokens"]))


CASES: dict[str, tuple[Callable, str, str, str]] = {
    "tokens in billions": (change(tokens=lambda t: t["tokens"] / 1e9), "units", "column tokens has a median", "--unit tokens=1e6 (or 1e9)"),
    "params in millions": (change(params=lambda t: t["params"] / 1e6), "units", "column params has a median", "--unit params="),
    "two units in a column": (mixed_tokens, "units", "column tokens mixes units: 4 rows up to 30", "--exclude 'tokens < 1e+09'"),
    "flops in another unit": (
        change(flops=lambda t: 6e-9 * t["params"] * t["tokens"]), "flops", "more than 10 times away from 6 N D in 16 of 16 rows", "units",
    ),
    "flops in some rows": (
        change(flops=lambda t: (6 * t["params"] * t["tokens"]).where(t.index > 2)), "flops", "filled in 13 of 16 rows", "fill it in",
    ),
    "losses out of range": (change(loss=lambda t: np.where(t.index == 3, 33.0, t["loss"])), "loss_range", "1 of 16 losses", "--exclude"),
    "groups": (change(group=lambda t: np.where(t.index < 9, "a b", "c")), "groups", "2 groups (a b, c)", "--exclude \"group != 'a b'\""),
    "more unique tokens than tokens": (change(tokens_unique=lambda t: 2 * t["tokens"]), "unique_tokens", "16 of 16 rows", "swapped"),
    "one size": (change(params=1e8), "levels", "all runs have one N", "power-d"),
    "two amounts": (change(tokens=lambda t: np.where(t.index % 2, 1e9, 1e10)), "levels", "D has two levels", "a third D"),
    "D = 20 N": (change(tokens=lambda t: 20 * t["params"]), "tied", "tokens per parameter stay near 20", "leave this line"),
    "one budget": (change(tokens=lambda t: 1e18 / t["params"]), "tied", "D moves as N^-1.00", "leave this line"),
    "one run under two names": (lambda t: pd.concat([t, t.iloc[:1].assign(run_id="again")]), "duplicates", "2 rows share N, D and loss", "--exclude"),
    "a copied row": (lambda t: pd.concat([t, t.iloc[2:4]]), "copies", "2 rows are copies", "exclusions.csv"),
    "a run_id in several rows": (change(run_id=lambda t: ["a" if i < 3 else f"r{i}" for i in t.index]), "repeated_ids", "1 run_ids", "one trunk"),
    "two machines": (change(numerics_id=lambda t: np.where(t.index < 5, "a", "b")), "numerics", "mix 2 numerics_id", "--exclude"),
    "rows without tokens": (change(tokens=lambda t: t["tokens"].where(t.index != 4)), "gaps", "1 of 16 rows are left out: tokens is empty", "exclusions"),
    "an outlier": (change(loss=lambda t: np.where(t.index == 7, 1.4 * t["loss"], t["loss"])), "outliers", "worst: r7", "--exclude"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_found_and_nothing_else_is_said_of_it(tmp_path: Path, name: str) -> None:
    spoil, kind, message, remedy = CASES[name]
    found = [finding for finding in findings(tmp_path, spoil(grid())) if finding.kind == kind]
    assert len(found) == 1
    assert message in found[0].message and remedy in found[0].remedy
    assert "\n" not in str(found[0])


def test_a_sound_table_is_passed_in_silence(tmp_path: Path) -> None:
    assert findings(tmp_path, grid()) == []
    assert findings(tmp_path, grid(seeds=3)) == []
    flops = 6.5 * grid()["params"] * grid()["tokens"]
    assert findings(tmp_path, grid().assign(group="all", numerics_id="one", flops=flops, tokens_unique=grid()["tokens"])) == []


def test_our_own_results_are_passed_in_silence() -> None:
    assert check_runs(read_runs(REFERENCE)) == []


def test_a_sweep_of_rates_in_every_cell(tmp_path: Path) -> None:
    table = grid(seeds=4)
    rate = np.tile([1, 2, 4, 8], 16)
    table["loss"] *= 1 + 0.01 * np.log2(rate / 2) ** 2
    found = [f for f in findings(tmp_path, table.assign(learning_rate=rate)) if f.kind == "untuned"]
    assert len(found) == 1 and "16 cells (learning_rate differ)" in found[0].message and "--best" in found[0].remedy
    # The same spread without a setting that explains it may be seeds; half as much again is not.
    assert findings(tmp_path, table) == []
    assert [f.kind for f in findings(tmp_path, table.assign(loss=table["loss"] ** 1.5))] == ["untuned"]


def test_a_group_that_is_one_cell_is_no_family(tmp_path: Path) -> None:
    table = grid(seeds=3)
    names = [f"{n:g}-{d:g}" for n, d in table[["params", "tokens"]].to_numpy()]
    assert findings(tmp_path, table.assign(group=names)) == []


@pytest.mark.parametrize(("column", "kind"), [("val_bpb", "loss_units"), ("perplexity", "loss_units"), ("nll", "")])
def test_units_that_the_name_of_the_loss_tells(tmp_path: Path, column: str, kind: str) -> None:
    found = findings(tmp_path, grid().rename(columns={"loss": column}), loss_column=column)
    assert [finding.kind for finding in found] == ([kind] if kind else [])


@pytest.mark.parametrize("value", ["0", "-6e18", "inf", "many"])
def test_flops_that_cannot_be_are_refused(tmp_path: Path, value: str) -> None:
    flops = [str(v) for v in 6 * grid()["params"] * grid()["tokens"]]
    flops[4] = value
    with pytest.raises(UserError, match="row 5, column flops"):
        findings(tmp_path, grid().assign(flops=flops))
    assert findings(tmp_path, grid().assign(flops=flops), exclude="run_id == r4") == []


def test_a_copy_counts_once_and_is_listed(tmp_path: Path) -> None:
    table = pd.concat([grid(), grid().iloc[:1]])
    table.to_csv(tmp_path / "t.csv", index=False)
    runs = read_runs(tmp_path / "t.csv")
    assert len(runs.frame) == 16
    assert runs.excluded.to_numpy().tolist() == [["r0", "copy of row 1: the same in every column"]]
    # Without a run_id two equal rows may be two runs: both count, with a warning.
    found = findings(tmp_path, table.drop(columns="run_id"))
    assert [finding.kind for finding in found] == ["duplicates"]


def kinds(name: str) -> set[str]:
    path = PUBLISHED / name / "tidy.csv"
    if not path.is_file():
        pytest.skip("the published data sets (../shared/published) are not here")
    return {finding.kind for finding in check_runs(read_runs(path))}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("takano_chinchilla", set()),
        ("besiroglu2024", {"outliers"}),  # the runs that Besiroglu et al. left out
        ("gadre2024", {"groups"}),  # three training sets
        ("steplaw2025", {"untuned", "gaps"}),  # rates and batches in every cell; 117 rows without tokens
        ("datablations2023", {"groups"}),
        ("clark2022_routing", {"groups", "untuned", "levels"}),  # routers, experts, one amount of data
    ],
)
def test_published_tables(name: str, expected: set[str]) -> None:
    assert kinds(name) == expected
