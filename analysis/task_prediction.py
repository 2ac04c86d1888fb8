"""From (N, D) to the loss to the metric: what a model that was not trained would do, with intervals of both steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.errors import UserError
from analysis.fitting import Fit
from analysis.optimal import Source, point
from analysis.task_laws import LEVEL, chosen, task_laws


@dataclass(frozen=True)
class MetricPrediction:
    """A metric at (N, D).

    Attributes
    ----------
    name : task and metric, as in evaluation.csv: ``held_out_accuracy``
    low, high : central 95 % of draws of the law of the loss and of the form together, if both are true
    rmse : scatter of the fitted runs around the form
    """

    name: str
    form: str
    value: float
    low: float
    high: float
    rmse: float


def predict_metrics(
    source: Source, folder: str | Path, *, params: float, tokens: float, unique_tokens: float | None = None
) -> list[MetricPrediction]:
    """Every metric of a results folder at a size and number of tokens (all domains together).

    Parameters
    ----------
    source : Fit
        The law of the loss, with draws.
    folder : path
        Where evaluation.csv lies.

    Raises
    ------
    UserError
        Without evaluation.csv, without draws, or with a published preset, whose loss is of another text.
    """
    if not isinstance(source, Fit):
        raise UserError(f"--tasks needs a results folder with evaluation.csv; {folder} is a published preset, its loss is of another text")
    if source.draws is None:
        raise UserError("--tasks needs draws of the law; leave --bootstrap 0 out")
    values = point(params, tokens, tokens if unique_tokens is None else unique_tokens)
    loss = float(source.predict(**values))
    drawn = source.law.predict({name: source.draws[name].to_numpy() for name in source.law.parameters}, **values)
    found = []
    for law in chosen(task_laws(folder, law=source.law.name, variables=("loss",))).values():
        if law.domain != "all":
            continue
        forms = law.draws[np.arange(len(drawn)) % len(law.draws)]
        sample = [float(law.form.curve(np.float64(at), *form)) for at, form in zip(drawn, forms, strict=True)]
        name = f"{law.task}_{law.metric}"
        low, high = np.quantile(sample, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        value = float(law.predict(np.array(loss)))
        found.append(MetricPrediction(name, law.form.name, value, float(low), float(high), law.rmse))
    return found
