"""Commands that use a trained model: generate, export."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.cli.numbers import not_negative, positive

if TYPE_CHECKING:
    from scaling.decoding.strategies import Continuation, Strategy

EXAMPLES = {
    "generate": 'scaling generate results/quickstart --prompt "def " --strategy sample --temperature 0.8 --top-p 0.9',
    "export": "scaling export results/quickstart --to exported",
}
STRATEGIES = ("greedy", "sample", "beam", "rank")


def add_parsers(commands: argparse._SubParsersAction) -> None:
    """Register this module's commands."""

    def add(name: str, function, summary: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {EXAMPLES[name]}")
        made.set_defaults(run=function)
        made.add_argument("model", metavar="RESULTS|HF_FOLDER", type=Path, help="a sweep's results folder, or a Hugging Face folder")
        made.add_argument(
            "--run", dest="run_id", metavar="ID", help="which run (the beginning of its id will do; default: the lowest loss)"
        )
        return made

    generate = add("generate", generate_command, "continue prompts: greedy, sampling, beam search, ranked candidates (docs/decoding.md)")
    generate.add_argument("--prompt", action="append", default=[], help="text to continue; may be given several times (a batch)")
    generate.add_argument("--prompts", metavar="FILE", type=Path, help="one prompt a line")
    generate.add_argument("--strategy", choices=STRATEGIES, default="sample")
    generate.add_argument("--tokens", type=positive, default=200, help="at most so many new tokens (default: 200)")
    generate.add_argument("--seed", type=not_negative, default=0, help="same seed, same text (default: 0)")
    generate.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times")
    generate.add_argument("--temperature", type=float, default=1.0, help="sample, rank: below 1 sharper, above 1 flatter")
    generate.add_argument("--top-k", type=positive, default=None, help="sample, rank: only the K likeliest tokens")
    generate.add_argument("--top-p", type=float, default=1.0, help="sample, rank: only the smallest set of tokens with this probability")
    generate.add_argument("--min-p", type=float, default=0.0, help="sample, rank: only tokens this likely relative to the likeliest")
    generate.add_argument("--beams", type=positive, default=4, help="beam: beginnings kept (default: 4)")
    generate.add_argument("--length-power", type=float, default=0.0, help="beam: scores are sum log p / length^POWER (default: 0)")
    generate.add_argument("--candidates", type=positive, default=8, help="rank: candidates drawn (default: 8)")
    generate.add_argument("--length-normalised", action="store_true", help="rank: choose by the mean log p per token")
    generate.add_argument("--all", action="store_true", help="beam, rank: print the others too, with their log-probabilities")
    generate.add_argument("--json", action="store_true", help="for scripts: text, tokens, log-probabilities")

    export = add("export", export_command, "write a run as a Hugging Face folder (docs/huggingface.md)")
    export.add_argument("--to", metavar="FOLDER", type=Path, required=True, help="a new folder")


def _prompts(arguments: argparse.Namespace) -> list[str]:
    from scaling.config import UserError

    prompts = list(arguments.prompt)
    if arguments.prompts:
        try:
            prompts += arguments.prompts.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts {arguments.prompts}: not readable as UTF-8 text ({error})") from None
    return prompts or [""]


def _strategy(arguments: argparse.Namespace) -> "Strategy":
    from scaling.decoding.sampling import Sampling
    from scaling.decoding.strategies import Beam, Greedy, Rank, Sample

    sampling = Sampling(temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p, min_p=arguments.min_p)
    match arguments.strategy:
        case "greedy":
            return Greedy()
        case "sample":
            return Sample(sampling=sampling)
        case "beam":
            return Beam(width=arguments.beams, length_power=arguments.length_power)
        case _:
            return Rank(candidates=arguments.candidates, sampling=sampling, length_normalised=arguments.length_normalised)


def generate_command(arguments: argparse.Namespace) -> int:
    """Print prompt and continuation to stdout, as they come."""
    from scaling.decoding.strategies import Limits, generate
    from scaling.language_model import open_model

    strategy, prompts = _strategy(arguments), _prompts(arguments)
    limits = Limits(tokens=arguments.tokens, stop=tuple(arguments.stop), seed=arguments.seed)
    model = open_model(arguments.model, arguments.run_id)
    print(f"{model.name}, {arguments.strategy}, seed {arguments.seed}", file=sys.stderr)
    streams = len(prompts) == 1 and arguments.strategy in ("greedy", "sample") and not arguments.json
    before = list(prompts)

    def listen(_: int, text: str) -> None:
        print(before.pop() if before else "", text, sep="", end="", flush=True)

    found = generate(model, prompts, strategy, limits=limits, listen=listen if streams else None)
    if arguments.json:
        print(json.dumps([{"prompt": prompt, **_plain(one)} for prompt, one in zip(prompts, found, strict=True)], indent=1))
    elif streams:
        print(*before)
    else:
        for prompt, one in zip(prompts, found, strict=True):
            print(f"{prompt}{one.text}")
            for other in (one, *one.others) if arguments.all else ():
                chance = f", chosen with probability {other.chance:.3g}" if arguments.strategy == "rank" else ""
                print(f"--- log p {other.log_probability:.2f} over {len(other.tokens)} tokens{chance}: {other.text!r}")
    return 0


def _plain(one: "Continuation") -> dict[str, Any]:
    named = {name: getattr(one, name) for name in ("text", "tokens", "log_probability", "ended", "chance")}
    return {**named, "others": [_plain(other) for other in one.others]}


def export_command(arguments: argparse.Namespace) -> int:
    """Print the folder that was written."""
    from scaling.byte_tokenizer import byte_tokenizer
    from scaling.cli.model_card import model_card
    from scaling.config import UserError
    from scaling.huggingface.writing import save_folder
    from scaling.language_model import open_model, read_json, tokenizer_file
    from scaling.record import read_resolved

    model = open_model(arguments.model, arguments.run_id)
    if model.run is None:
        raise UserError(f"{arguments.model} is a Hugging Face folder already; name a sweep's results folder")
    resolved = read_resolved(arguments.model)
    in_bytes = model.run.trunk.data.tokenizer == "bytes"
    tokenizer = byte_tokenizer() if in_bytes else read_json(tokenizer_file(model.run, resolved))
    card = model_card(model, model.run, resolved, arguments.model)
    save_folder(model, arguments.to, tokenizer=tokenizer, card=card)
    print(f"{model.name} -> {arguments.to}: load it with transformers, or `scaling generate {arguments.to}`", file=sys.stderr)
    print(arguments.to)
    return 0
