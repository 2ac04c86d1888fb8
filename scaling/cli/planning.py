"""`scaling optimal` in hours and money: a budget from a device, what a smaller reducible loss costs, an optimum as a run of a sweep."""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.fitting import Fit
    from analysis.presets import AllocationPreset, Preset

MOST_DOUBLINGS = 200


def add_flags(optimal: argparse.ArgumentParser) -> None:
    """Register the flags."""
    optimal.add_argument("--flops", metavar="C", help="training compute, FLOPs: 1e21")
    optimal.add_argument("--hours", metavar="H", help="instead of --flops: hours of one device of --hardware, such as 8")
    optimal.add_argument("--hardware", metavar="NAME|FILE.toml:NAME", help="h100, h200, a100, rtx4090, cpu, or of a table of your own")
    optimal.add_argument(
        "--reducible", metavar="SHARE", help="what compute leaves this share of the reducible loss at --flops, such as 0.5"
    )
    optimal.add_argument("--entry", action="store_true", help="also print the optimum as a run to add to RESULTS' sweep file")


def budget_of(arguments: argparse.Namespace) -> float:
    """FLOPs of --flops, or of --hours on --hardware.

    Raises
    ------
    UserError
        When neither or both are given.
    """
    from scaling.config import UserError, parse_quantity
    from scaling.hardware import read_device

    if (arguments.flops is None) == (arguments.hours is None):
        raise UserError("optimal: give the budget once, with --flops C or with --hours H --hardware NAME")
    if arguments.flops is not None:
        return parse_quantity(arguments.flops)
    if arguments.hardware is None:
        raise UserError("--hours needs --hardware: whose hours they are, such as h100 or cpu")
    device = read_device(arguments.hardware)
    flops = device.flops(parse_quantity(arguments.hours))
    print(
        f"{arguments.hours} h of {arguments.hardware}: {flops:.3g} FLOPs ({device.mfu:.0%} of the peak, assumed; {device.source})",
        file=sys.stderr,
    )
    return flops


def flops_for_share(source: "Fit | Preset | AllocationPreset", flops: float, share: float) -> float:
    """Compute whose optimum has `share` of the reducible loss of the optimum at `flops`, by bisection on the law's frontier.

    For Chinchilla this is ``flops * share^(-(alpha + beta) / (alpha beta))``.

    Raises
    ------
    UserError
        When the law has no E, or does not fall so far.
    """
    from analysis.optimal import compute_optimal
    from analysis.presets import AllocationPreset
    from scaling.config import UserError

    if isinstance(source, AllocationPreset) or "E" not in source.params:
        raise UserError("--reducible needs a law of the loss with an irreducible loss E, such as chinchilla")
    floor = float(source.params["E"])
    wanted = floor + share * (compute_optimal(source, flops).loss - floor)
    low, high = flops, flops
    for _ in range(MOST_DOUBLINGS):
        if compute_optimal(source, high).loss <= wanted:
            break
        low, high = high, 2 * high
    else:
        raise UserError(f"--reducible {share:g}: the law does not fall so far")
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if compute_optimal(source, middle).loss > wanted else (low, middle)
    return math.sqrt(low * high)


def smaller_loss(arguments: argparse.Namespace, source: "Fit | Preset | AllocationPreset", flops: float) -> float:
    """Replace the budget by what --reducible takes, and say what it is."""
    from scaling.config import UserError, parse_quantity

    share = parse_quantity(arguments.reducible)
    if not share < 1:
        raise UserError(f"--reducible {arguments.reducible} must lie between 0 and 1, such as 0.5")
    wanted = flops_for_share(source, flops, share)
    print(f"{share:g} of the reducible loss at {flops:.3g} FLOPs takes {wanted:.3g}, {wanted / flops:.3g} times as much", file=sys.stderr)
    return wanted


def tell_price(arguments: argparse.Namespace, answer: dict[str, Any]) -> None:
    """Say what the optimum's training takes on --hardware."""
    from scaling.hardware import bill, read_device

    print(f"{arguments.hardware}: {bill(read_device(arguments.hardware), [answer['flops']], [answer['params_opt']])}", file=sys.stderr)


def print_entry(arguments: argparse.Namespace, answer: dict[str, Any]) -> None:
    """Print the optimum as `[[run]]`: the width whose size is nearest, with the rate and the batch that the sweep's law gives it.

    Raises
    ------
    UserError
        When the source is no sweep's folder.
    """
    from scaling.accounting import count_parameters
    from scaling.config import UserError, format_quantity
    from scaling.recipe import matrix_rate, small_recipe
    from scaling.record import read_resolved

    root = Path(arguments.source)
    if not (root / "sweep.resolved.json").is_file():
        raise UserError(f"--entry: {arguments.source} is no sweep's folder, so its recipe is not known")
    resolved = read_resolved(root)
    sweep, group = resolved.sweep, answer["n_column"].removeprefix("params_")
    vocabulary = resolved.runs[0].trunk.model.vocab_size
    sizes = {}
    for width in range(8, 8193, 8):
        try:
            model = small_recipe(width, grid=sweep.model, vocab_size=vocabulary)
        except UserError:
            continue
        sizes[width] = (float(getattr(count_parameters(model), group)), model)
        if sizes[width][0] > 2 * answer["params_opt"]:
            break
    width = min(sizes, key=lambda width: abs(math.log(sizes[width][0] / answer["params_opt"])))
    size, model = sizes[width]
    tokens, batch = answer["tokens_opt"], sweep.training.batch_tokens
    rate = matrix_rate(sweep.training, params=float(count_parameters(model).non_embedding), tokens=tokens)
    tuned = "tuned by this sweep" if sweep.tune else "the recipe's" if sweep.training.learning_rate is None else "set in the sweep"
    how = f"rate {rate:.4g} ({tuned}), {batch} tokens a step"
    print(f"# {format_quantity(size)} parameters (optimum {format_quantity(answer['params_opt'])}); {how}")
    print(f"[[run]]\nd_model = {width}\ntokens = {round(tokens)}")
