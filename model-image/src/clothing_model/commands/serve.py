"""`clothing-model serve`: runs the portable model server."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from importlib import metadata

from clothing_model import __version__


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    # TensorFlow Serving's flags aren't argparse's: `--port=8500` is one, `--port 8500` is not.
    """Add the ``serve`` command."""
    parser = subparsers.add_parser("serve", add_help=False)
    parser.set_defaults(takes_rest=True)


def run(args: argparse.Namespace) -> int:
    """Run the ``serve`` command until a signal stops it.

    Raises:
        ModelError: the server could not start.

    """
    from clothing_model.server import flags

    if {"--help", "-h"} & set(args.rest):
        print(flags.usage())
        return 0
    try:
        parsed, notes = flags.parse(args.rest)
    except flags.FlagError as error:
        print(f"clothing-model serve: {error}\n\n{flags.usage()}", file=sys.stderr)
        return 2
    if parsed.version:
        print("\n".join(_versions()))
        return 0

    from clothing_model.quiet import quiet_tensorflow

    quiet_tensorflow()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname).1s %(name)s: %(message)s"
    )
    for note in notes:
        logging.getLogger(__name__).info(note)
    # Importing TensorFlow takes seconds, in which a PID 1 without a handler would not end on SIGTERM.
    if parsed.handle_signals:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from clothing_model.server import app

    return app.serve(parsed)


def _versions() -> list[str]:
    """The libraries' versions, read without importing them."""
    lines = [f"clothing-model {__version__}"]
    for library in ("tensorflow-cpu", "tensorflow", "tensorflow-serving-api", "grpcio"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            lines.append(f"{library} {metadata.version(library)}")
    return lines
