"""Where tuning loops: train the rates of `[tune]`, look at the minima, add rates beyond an edge, give the grid the law's rates."""

import math
import sys
from collections.abc import Callable

import msgspec
import pandas as pd

from scaling.cli.early import train_in_stages, write_early_table
from scaling.config import Sweep, Training, UserError
from scaling.plan import resolve, tune_runs
from scaling.record import Folder, Resolved, read_result
from scaling.tables import run_rows

Rates = dict[int, list[float]]
MOST_POWER = 2.0  # also the bound of learning_rate_params_power in a sweep file


def tuned(resolved: Resolved, folder: Folder, *, train: Callable[[Resolved], None] | None) -> Resolved:
    """Resolve a sweep with `[tune]`: its tuning runs, and the grid at the rates that they give.

    Parameters
    ----------
    resolved : Resolved
        The sweep as written; its list of runs does not count.
    folder : Folder
    train : callable or None
        Trains what is missing of a list of runs. None: look only; where tuning runs are missing the grid has the rates that the sweep has
        without them.

    Raises
    ------
    UserError
        When the best rate of a cell stays at the edge of `tune.most_rates` rates, or runs failed.
    """
    import analysis.tuning as tuning

    sweep, corpus_hash = resolved.sweep, resolved.corpus_hash
    assert sweep.tune is not None
    rates: Rates = {d_model: sorted(sweep.tune.rates) for d_model in sweep.tune.d_model}
    while True:
        tried = tune_runs(sweep, rates=rates, corpus_hash=corpus_hash)
        part = msgspec.structs.replace(resolved, runs=tried)
        missing = [run for run in tried if read_result(folder, run.run_id, files=False) is None]
        if missing and train is None:
            return msgspec.structs.replace(resolved, runs=tried + resolve(sweep, corpus_hash=corpus_hash))
        if train is not None and sweep.tune.stop:
            train_in_stages(part, folder, least=sweep.tune.stop, train=train)
        elif missing and train is not None:
            train(part)
        rows = pd.DataFrame(run_rows(folder, part))
        undone = rows[~rows["status"].isin(["done", "diverged", "stopped"])]
        if len(undone):
            first = undone.iloc[0]
            raise UserError(
                f"tuning is not complete: {first['run_id']}: {first['status']} {first['reason']}; `scaling run` with --retry failed"
            )
        table = tuning.tuning_table(rows)
        law = tuning.rate_law(table)
        if law is not None:
            if train is not None and sweep.tune.stop:
                print(write_early_table(folder, part), file=sys.stderr)
            found = _with_law(sweep, law)
            return msgspec.structs.replace(resolved, sweep=found, runs=tried + resolve(found, corpus_hash=corpus_hash))
        _add_rates(sweep, rates, rows, table)


def _with_law(sweep: Sweep, law) -> Sweep:
    """Give the grid the rates of a law: its numbers become the sweep's own settings, so that they are recorded with it.

    Raises
    ------
    UserError
        When a power is larger than 2: then the minima are noise, and other sizes would get absurd rates.
    """
    for name, power in (("N", law.params_power), ("D", law.tokens_power)):
        if abs(power) > MOST_POWER:
            raise UserError(
                f"tune: the best rates follow {name}^{-power:.1f}, steeper than {MOST_POWER:g} either way: the minima are noise; "
                "give tune.seeds more seeds, or tune at sizes and amounts of data further apart"
            )
    training: Training = msgspec.structs.replace(
        sweep.training,
        learning_rate=law.rate_at,
        learning_rate_params=law.params,
        learning_rate_params_power=law.params_power,
        learning_rate_tokens=law.tokens,
        learning_rate_tokens_power=law.tokens_power,
        batch_tokens=int(law.batch_tokens),
    )
    return msgspec.structs.replace(sweep, training=training)


def _add_rates(sweep: Sweep, rates: Rates, rows: pd.DataFrame, table: pd.DataFrame) -> None:
    """One more rate, beyond the edge, for every width whose minimum is not between its rates."""
    assert sweep.tune is not None
    before = {d_model: list(tried) for d_model, tried in rates.items()}
    for cell in table[table["chosen"].astype(bool) & ~table["bracketed"].astype(bool)].itertuples():
        d_model = int(cell.d_model)  # pyright: ignore[reportArgumentType]
        tried = rates[d_model]
        if len(tried) > len(before[d_model]):
            continue
        if len(tried) >= sweep.tune.most_rates:
            raise UserError(
                f"tune: at d_model = {d_model} {cell.reason} after {len(tried)} rates ({tried[0]:g} to {tried[-1]:g}), so there is no "
                "minimum to use; give tune.rates around that edge, or more tune.seeds, or raise tune.most_rates"
            )
        rates[d_model] = sorted([*tried, _next_rate(tried, rows[rows["d_model"] == d_model], lowest="lowest" in str(cell.reason))])
    if rates == before:
        raise UserError(
            "tune: the minima allow no law of the rate (two amounts of data at one size each?); see tuning.csv, and tune more cells"
        )


def _next_rate(tried: list[float], rows: pd.DataFrame, *, lowest: bool) -> float:
    """A step of the grid beyond its edge; halfway to a rate at which training diverged."""
    if lowest:
        return tried[0] ** 2 / tried[1]
    diverged = sorted(set(rows[rows["status"] == "diverged"]["learning_rate"].astype(float)))
    fine = [rate for rate in tried if not any(math.isclose(rate, bad) for bad in diverged)]
    if diverged and fine and diverged[0] > fine[-1]:
        return math.sqrt(fine[-1] * diverged[0])
    return tried[-1] ** 2 / tried[-2]
