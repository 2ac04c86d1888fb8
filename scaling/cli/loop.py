"""Where the two halves meet in a loop: forecasts before hold-outs are trained, laws and report after everything is."""

import sys
from pathlib import Path

from scaling.accounting import count_parameters, training_flops_per_token
from scaling.config import FitOptions, RunConfig
from scaling.record import Resolved, folder_lock
from scaling.tables import write_tables


def forecast_holdouts(root: Path, resolved: Resolved) -> None:
    """Fit the sweep's forecast law to what is done and register one forecast for each hold-out run, before it may be trained.

    A hold-out that already has a forecast keeps it. Without enough fitted runs nothing is registered and the reason is printed.
    """
    import analysis
    from analysis.errors import UserError
    from analysis.forecast import register
    from analysis.uncertainty import bootstrap

    options, rule = resolved.sweep.fit, resolved.sweep.forecast_rule
    if resolved.sweep.holdout is None:
        return
    write_tables(root, resolved)
    try:
        runs = analysis.read_runs(root, n_column=options.n_column)
        fit = analysis.fit(rule.law, runs, loss=options.loss, link=options.link, seed=options.seed)
    except UserError as error:
        print(f"no forecast, so the hold-out is not trained: {error}", file=sys.stderr)
        return
    fit = bootstrap(fit, draws=options.bootstrap, seed=options.seed)
    with folder_lock(root, "tables"):
        for run in resolved.runs:
            if run.role == "holdout":
                path = register(fit, forecast_target(run), threshold=rule.relative_error, inside=rule.inside, folder=root)
                print(f"forecast registered before training: {path}", file=sys.stderr)


def forecast_target(run: RunConfig) -> dict:
    """What a forecast is about: the run, and the quantities that laws use."""
    parameters = count_parameters(run.trunk.model)
    return {
        "run_id": run.run_id,
        "trunk_id": run.trunk_id,
        "params_embedding": parameters.embedding,
        "params_non_embedding": parameters.non_embedding,
        "params_unembedding": parameters.unembedding,
        "params_total": parameters.total,
        "tokens": run.tokens,
        "flops": run.tokens * training_flops_per_token(run.trunk.model),
    }


def where_seeds_pay(root: Path, resolved: Resolved) -> str:
    """Say at which size one more seed takes most off the uncertainty of the forecast, for its compute, by the noise measured so far."""
    import analysis
    from analysis.errors import UserError
    from analysis.repeats import where_repeats_pay
    from analysis.uncertainty import bootstrap
    from scaling.config import format_quantity
    from scaling.plan import group_trunks

    options = resolved.sweep.fit
    try:
        runs = analysis.read_runs(root, n_column=options.n_column)
        fit = analysis.fit(resolved.sweep.forecast_rule.law, runs, loss=options.loss, link=options.link, seed=options.seed)
    except UserError as error:
        return f"where a seed pays: not known yet ({error})"
    if {"N", "D"} - set(fit.law.variables) or not fit.noise.repeats:
        return "where a seed pays: not known without repeats; set training.seeds to 2 or more"
    fit = bootstrap(fit, draws=200, seed=options.seed)
    size_of = {trunk.trunk_id: trunk.flops for trunk in group_trunks(resolved.runs) if trunk.role == "fit"}
    cost = {float(n): max(size_of.get(str(t), 0.0) for t in rows["trunk_id"]) for n, rows in fit.frame.groupby("N")}
    held = [run for run in resolved.runs if run.role == "holdout"]
    aim = max((forecast_target(run) for run in held), key=lambda target: target["flops"]) if held else None
    n, d = (float(aim[options.n_column]), float(aim["tokens"])) if aim else (float(fit.frame["N"].max()), float(fit.frame["D"].max()))
    at = f"N = {format_quantity(n)}, D = {format_quantity(d)}"
    table = where_repeats_pay(fit, target=(n, d), cost=cost)
    lines = [f"one seed more, by what it takes off the sd of the forecast at {at} (if the law is true):"]
    for row in table.to_dict("records"):
        exponents = ", ".join(f"{name} -{100 * row[name]:.1f} %" for name in ("alpha", "beta") if name in row)
        lines.append(
            f"  N = {format_quantity(row['params']):>6}: forecast -{100 * row['forecast']:.1f} %, {exponents}; {row['flops']:.1e} FLOPs,"
            f" {100 * row['forecast_per_flops']:.0f} % of the best a FLOP"
        )
    return "\n".join(lines)


def fit_settings(options: FitOptions) -> dict:
    """Keyword arguments of `analysis.tables.analyse` from a sweep's `[fit]`."""
    return {
        "laws": tuple(options.laws),
        "n_column": options.n_column,
        "loss": options.loss,
        "link": options.link,
        "bootstrap": options.bootstrap,
        "seed": options.seed,
    }


def analyse_and_report(root: Path, resolved: Resolved, *, program: str) -> str:
    """Laws, tables, plots and report from the tables; returns the summary for the terminal."""
    from analysis.groups import groups_of
    from analysis.plotting import plot_all
    from analysis.report import write_report
    from analysis.report_text import summary
    from analysis.tables import analyse

    if groups_of(root):
        return _analyse_texts(root, resolved, program=program)
    with folder_lock(root, "tables"):
        result = analyse(root, **fit_settings(resolved.sweep.fit))
        plots = plot_all(result, root)
        report = write_report(result, root, plots)
    places = [
        ("report", report),
        ("plots", root / "plots"),
        ("laws", root / "laws.csv"),
        ("runs", root / "runs.csv"),
    ]
    lines = [summary(result), "", *(f"{name:7} {path}" for name, path in places)]
    lines.append(f'next    {program} query {root} "SELECT law, parameter, estimate, ci_low, ci_high FROM laws"')
    return "\n".join(lines)


def _analyse_texts(root: Path, resolved: Resolved, *, program: str) -> str:
    """A law for each text of a sweep over several, and the comparison; their losses are of different things, so no law is common."""
    from analysis.groups import analyse_groups, group_summary
    from analysis.plotting import write_figures
    from analysis.text_plots import group_figures

    with folder_lock(root, "tables"):
        found = analyse_groups(root, **fit_settings(resolved.sweep.fit))
        write_figures(group_figures(found, root), root)
    lines = [group_summary(found), "", f"groups  {root / 'groups.csv'}", f"plots   {root / 'plots'}", f"each    {root / 'groups'}/NAME/"]
    lines.append(f"next    {program} report {root / 'groups'}/NAME   (plots and page of one text)")
    return "\n".join(lines)
