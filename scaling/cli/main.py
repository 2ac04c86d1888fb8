"""The `scaling` command: parses arguments, calls one command, turns mistakes into one line and an exit code.

Exit codes: 0 success, 1 a failure, 2 the user's mistake, 3 runs failed and remain undone.
"""

import argparse
import gc
import os
import signal
import sys

# Fits thread over batches themselves; matrix products that thread too fight for the same cores (4,000 bootstraps 1.15 s instead of .6 s).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from scaling import __version__

ONE_LINE = {"UserError": 2, "WorkersFailed": 1, "EngineFailed": 1, "NothingGained": 1}
"""Errors that explain themselves, by name (their modules are heavy to import), and the exit code of each."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: end as Ctrl-C does, with another exit code."""


def _terminate(*_: object) -> None:
    raise Terminated


class OneLineParser(argparse.ArgumentParser):
    """Mistakes in arguments get one line, like every other mistake."""

    def error(self, message: str):
        """Print what is wrong and where to look, exit 2."""
        from analysis.errors import printable

        self.exit(2, f"{self.prog}: {printable(' '.join(message.split()))}; see `{self.prog} --help`\n")


def parser() -> argparse.ArgumentParser:
    """All commands; each module registers its own."""
    from scaling.cli import (
        completion,
        corpus_commands,
        design_commands,
        evaluate_command,
        import_commands,
        laws_commands,
        machines,
        model_commands,
        recipe_commands,
        runs_commands,
    )

    top = OneLineParser(
        prog="scaling",
        description="Train grids of model size x data size, fit scaling laws with honest intervals, see what to train next.",
        epilog="Start here: scaling run quickstart      (docs/sweeps.md explains every key of a sweep file)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"scaling {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    runs_commands.add_parsers(commands)
    machines.add_parsers(commands)
    recipe_commands.add_parsers(commands)
    laws_commands.add_parsers(commands)
    design_commands.add_parsers(commands)
    import_commands.add_parsers(commands)
    corpus_commands.add_parsers(commands)
    model_commands.add_parsers(commands)
    evaluate_command.add_parser(commands)
    completion.add_parsers(commands, parser)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    gc.set_threshold(100_000)  # imports, tables and JAX's tracing make many objects and little garbage: 5 % of a command
    arguments = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if os.environ.get("SCALING_PLUGINS"):
            from scaling.registry import load_plugins

            load_plugins()
        return int(arguments.run(arguments) or 0)
    except KeyboardInterrupt as how:
        print("\ninterrupted: nothing is lost; the same command continues where it stopped", file=sys.stderr)
        return 143 if isinstance(how, Terminated) else 130
    except BrokenPipeError:  # `scaling query ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        code = 1 if isinstance(error, OSError) else ONE_LINE.get(type(error).__name__)
        if code is None:
            raise
        from analysis.errors import printable

        print(f"scaling: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return code


if __name__ == "__main__":
    sys.exit(main())
