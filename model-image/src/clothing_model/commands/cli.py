"""The `clothing-model` command.

A subcommand is a module with `add_parser(subparsers)`, which names its options, and `run(args) -> int`, which does
the work; one that reads its own arguments sets `takes_rest` and finds them in `args.rest`. Only the module of the
command asked for is imported, so that `--help` is instant; `add_parser` in turn keeps TensorFlow out until `run`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Protocol

from clothing_model import __version__
from clothing_model.errors import ModelError

COMMANDS = {
    "train": "train a compact network on a folder of photos, or transfer-learn from a Keras application",
    "average": "make one model of several, or of a photo and its mirror image, by the mean of their scores",
    "convert": "turn a Keras file or a SavedModel into NAME/VERSION/, ready for TensorFlow Serving",
    "inspect": "show a SavedModel's inputs and outputs, and the chart's values for it (needs no TensorFlow)",
    "values": "print the chart's values for a model (needs no TensorFlow)",
    "verify": "check that models can be served and used by the gateway, for builds and CI (needs no TensorFlow)",
    "evaluate": "measure a model on labelled photos: accuracy, confusion, calibration, latency",
    "diff": "compare two versions of a model on a folder of photos, before one takes the other's place",
    "serve": "serve SavedModels as TensorFlow Serving does, on any machine that has TensorFlow's wheel",
}


class Command(Protocol):
    """Interface of a subcommand's module."""

    def add_parser(self, subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        """Add the command and its options to the parser."""

    def run(self, args: argparse.Namespace) -> int:
        """Run the command; returns its exit status."""


def _load(name: str) -> Command:
    module: Command = importlib.import_module(f"clothing_model.commands.{name}")
    return module


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named in ``argv`` (default: ``sys.argv[1:]``).

    Returns:
        The exit status: 0; 1 for an error that the user can mend; 130 after Ctrl-C. Wrong usage exits with 2.

    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="clothing-model",
        description="Convert, check, evaluate, train and serve image classification models.",
        epilog="`clothing-model COMMAND --help` shows a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"clothing-model {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    name = arguments[0] if arguments else ""
    command = None
    if name in COMMANDS:
        command = _load(name)
        command.add_parser(subparsers)
    else:
        for each, summary in COMMANDS.items():
            subparsers.add_parser(each, help=summary, add_help=False)
    args, rest = parser.parse_known_args(arguments)
    if rest and not getattr(args, "takes_rest", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.rest = rest
    if command is None:  # an option stood before the command's name: `clothing-model -x serve`
        parser.error("give the command's name first, then its options")
    try:
        return command.run(args)
    except ModelError as error:
        print(f"clothing-model {name}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("clothing_model"):
            raise
        print(
            f"clothing-model {name}: the package {error.name} is not installed here. In the folder model-image: "
            "pip install --require-hashes --no-deps -r requirements-dev.lock",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"clothing-model {name}: interrupted", file=sys.stderr)
        return 130
