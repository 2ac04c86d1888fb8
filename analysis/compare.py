"""Rival laws compared by what they are for: predicting dearer runs from cheaper ones."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.frames import Frame
from analysis.laws import Law
from analysis.search import Loss, Solution, make_problem, resolve

CV_SHARES = (0.2, 0.25, 1 / 3, 0.5)
COLUMNS = ("run_id", "N", "D", "C", "loss", "fold", "predicted", "relative_error")


def cross_validate(law: Law, frame: Frame, whole: Solution, *, sd: np.ndarray, loss: Loss, link: str) -> Frame:
    """Predict the dearest fifth, quarter, third and half of the runs from the cheaper rest; the loss's delta is that of the whole fit.

    Parameters
    ----------
    frame : DataFrame
        Rows of the fit.
    whole : Solution
        The optimum on all of them: a start of every fold.
    sd : (n,) scale of each residual.

    Returns
    -------
    DataFrame
        run_id, N, D, C, loss, fold, predicted, relative_error; no rows for folds that leave too little to fit.
    """
    rows = []
    compute = frame["C"].to_numpy()
    params = whole.problem.model.decode(whole.theta)
    for share in CV_SHARES:
        inside = compute <= np.quantile(compute, 1 - share)
        if inside.sum() < len(law.parameters) + 2 or inside.all():
            continue
        kept, rest = frame[inside], frame[~inside]
        if law.variables and len(kept.drop_duplicates(list(law.variables))) <= len(law.parameters):
            continue  # as many points as parameters: the fit goes through them, and beyond them says nothing
        problem = make_problem(law, kept, sd=sd[inside], link=link, above=loss.above)
        y = kept["loss"].to_numpy(dtype=np.float64)
        weight = (problem.scale / (1.0 if problem.linear else y)) ** 2
        points = np.concatenate([problem.model.encode(params)[None], problem.model.starts(y, weight, 2)[0]])
        theta, values = resolve(whole, problem, points)
        if not np.isfinite(values).any():
            continue
        found = problem.model.decode(theta[values.argmin()])
        predicted = law.predict(found, **{name: rest[name].to_numpy(dtype=np.float64) for name in law.variables}, loss=rest["loss"])
        scored = rest.loc[:, ["run_id", "N", "D", "C", "loss"]].assign(fold=f"dearest {100 * share:.0f} %", predicted=predicted)
        rows.append(scored.assign(relative_error=predicted / rest["loss"] - 1))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=list(COLUMNS))
