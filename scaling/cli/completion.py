"""`scaling completion SHELL`: a script by which the shell completes commands, options and paths."""

import argparse
from collections.abc import Callable

HOW = """put it where the shell looks for it, once:
  bash:  scaling completion bash > ~/.local/share/bash-completion/completions/scaling
  zsh:   scaling completion zsh > ~/.zfunc/_scaling       (with `fpath+=~/.zfunc; autoload -U compinit; compinit` in ~/.zshrc)
  tcsh:  scaling completion tcsh > ~/.scaling.complete    (and `source ~/.scaling.complete` in ~/.tcshrc)"""
PATHS = {"SWEEP.toml", "RESULTS", "RUNS.csv", "FILE.csv", "DIR", "PATH", "OTHER"}


def add_parsers(commands: argparse._SubParsersAction, whole: Callable[[], argparse.ArgumentParser]) -> None:
    """Register the command; `whole` makes the parser that the script is written for."""
    summary = "print a completion script for the shell"
    made = commands.add_parser(
        "completion", help=summary, description=summary, epilog=HOW, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    made.set_defaults(run=lambda arguments: completion_command(arguments, whole()))


def completion_command(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Print the script to stdout."""
    import shtab

    for made in _all_parsers(parser):
        for action in made._actions:
            if PATHS & set(str(action.metavar).split("|")) and not action.choices:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=arguments.shell))
    return 0


def _all_parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                found += _all_parsers(inner)
    return found
