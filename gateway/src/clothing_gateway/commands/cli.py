"""The command ``clothing-gateway``.

Exit status: 0 success, 1 failure, 2 usage error, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

from clothing_gateway import __version__
from clothing_gateway.settings import ROWS, Setting, Settings, SettingsError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
# Not GATEWAY_…, as it is no setting of the gateway.
KEY_VARIABLE = "CLOTHING_GATEWAY_KEY"


class CommandError(Exception):
    """Failure of a command; the text is the cause."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "classify" and (wrong := _contradictions(options)):
        parser.error(wrong)
    if options.command == "download":
        return _download(options)
    if options.command == "doctor":
        return _doctor(parser, options)
    try:
        flags = {row.name: getattr(options, row.name, None) for row in ROWS}
        settings, sources, warnings = Settings.load(os.environ, flags)
    except SettingsError as error:
        for problem in error.problems:
            _say(f"error: {problem}")
        _say("`clothing-gateway serve --help` describes each setting")
        return USAGE
    try:
        if options.command == "serve":
            status = _serve(settings, sources, warnings, print_config=options.print_config)
        else:
            status = _classify(settings, options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `| head`, has closed the pipe. Nothing is left to be written, and so to fail, at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except CommandError as error:
        _say(f"error: {error}")
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _say(line: str) -> None:
    print(line, file=sys.stderr)


class _Version(argparse.Action):
    """Print the version and the JPEG decoder, and exit."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and the JPEG decoder, and exit")

    def __call__(self, *_: object) -> NoReturn:
        from clothing_gateway.image.decode import jpeg_decoder

        print(f"clothing-gateway {__version__} (JPEG: {jpeg_decoder()})")
        sys.exit(DONE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clothing-gateway",
        description="HTTP gateway for an image classifier on TensorFlow Serving: takes a photo by URL or upload.",
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve",
        help="run the gateway",
        description="Run the gateway. A flag takes precedence over its environment variable.",
    )
    serve.add_argument("--version", action=_Version)
    serve.add_argument("--print-config", action="store_true", help="print every setting and its source, and exit")
    for row in ROWS:
        _add_flag(serve, row)

    _add_classify(commands)
    _add_doctor(commands)

    download = commands.add_parser(
        "download",
        help="download a model for the model server",
        description="Fetch archives (.tar.gz, .tar, .zip) with versions of a model, from https://, http://, s3://, "
        "gs:// or az://, and unpack them to TO/NAME/VERSION. Each is pinned by its SHA-256, and cached by it.",
    )
    download.add_argument(
        "archives",
        metavar="URL#sha256=HEX[&version=N]",
        nargs="+",
        help="an archive; version is needed where it holds the model's files without a version folder",
    )
    download.add_argument("--name", required=True, help="the model's name")
    download.add_argument(
        "--to", type=Path, required=True, metavar="FOLDER", help="the model server's base folder, such as /models"
    )
    download.add_argument("--cache", type=Path, metavar="FOLDER", help="cache of unpacked archives (TO/.cache)")
    download.add_argument(
        "--max-bytes", type=_positive, metavar="N", help="size limit of an archive, packed and unpacked (20 GiB)"
    )
    return parser


def _add_classify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    classify = commands.add_parser(
        "classify",
        help="classify photos",
        description="Classify photos by a gateway, or directly by a model server over gRPC, with preprocessing here. "
        "Results go to stdout, or to the file of --csv; progress and failures go to stderr.",
        epilog="Exit status: 0 every photo was classified, 1 some were not, 2 usage error, 130 Ctrl-C; results up to "
        "then are written.",
    )
    classify.add_argument(
        "photos",
        metavar="PHOTO",
        nargs="+",
        help="a file; a folder, for all JPEG, PNG, WebP, GIF and BMP files in and below it; with --gateway also a URL",
    )
    asked = classify.add_mutually_exclusive_group()
    asked.add_argument(
        "--server",
        dest="tf_serving_host",
        metavar="HOST:PORT",
        help="the model server (TF_SERVING_HOST, localhost:8500)",
    )
    asked.add_argument("--gateway", metavar="URL", help="the gateway, as in http://localhost:9696")
    classify.add_argument(
        "--parallel", type=_positive, metavar="N", help="photos in flight (4: keeps a gateway of two cores busy)"
    )

    results = classify.add_argument_group("results")
    results.add_argument(
        "--top", type=_positive, metavar="K", help="only the K best labels (all; 3 of several photos, and of --csv)"
    )
    results.add_argument("--json", action="store_true", help="print a JSON object per photo, in order of completion")
    results.add_argument(
        "--csv", metavar="FILE", help="write a row per photo, in order of completion, to a file, or to stdout with -"
    )
    results.add_argument(
        "--resume", action="store_true", help="append to the file of --csv, and skip photos that it has results for"
    )

    gateway = classify.add_argument_group("with --gateway")
    gateway.add_argument(
        "--key-file", metavar="FILE", help=f"a file with the gateway's API key, and nothing else ({KEY_VARIABLE})"
    )
    gateway.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="timeout of each attempt (40)")
    gateway.add_argument(
        "--attempts",
        type=_positive,
        metavar="N",
        help="attempts per photo, when the gateway is unavailable or at capacity (5)",
    )
    gateway.add_argument(
        "--retry-seconds",
        type=_seconds,
        metavar="SECONDS",
        help="no retry later than this after a photo's first attempt; bounds waiting for a rate limit, too (60)",
    )

    server = classify.add_argument_group("with --server")
    for row in ROWS:
        if row.classify:
            _add_flag(server, row)


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="troubleshoot an installation",
        description="Check settings, DNS, model servers, the model, a gateway's admin port, fetching and limits, and "
        "report what is wrong and which of the chart's values fix it. In a pod: kubectl exec deployment/… -- "
        "clothing-gateway doctor, with the pod's settings. Elsewhere: with the flags of serve, and kubectl "
        "port-forward to ports 8500 and 9697.",
        epilog="Exit status: 0 nothing failed (warnings don't count), 1 something did.",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.add_argument(
        "--admin", metavar="URL", help="a gateway's admin port (http://localhost: and --admin-listen-port)"
    )
    doctor.add_argument("--photo", metavar="URL", help="fetch this URL as the gateway would, and report why that fails")
    settings = doctor.add_argument_group("settings, the flags of serve")
    for row in ROWS:
        _add_flag(settings, row)


def _contradictions(options: argparse.Namespace) -> str | None:
    """Find options of ``classify`` that contradict each other."""
    if options.json and options.csv == "-":
        return "--json and --csv - would both write to stdout: choose one, or give --csv a file"
    if options.resume and options.csv in (None, "-"):
        return "--resume adds to the file of --csv: name one"
    if options.gateway is None:
        for name in ("key_file", "timeout", "attempts", "retry_seconds"):
            if getattr(options, name) is not None:
                return f"--{name.replace('_', '-')} is for --gateway"
    return None


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number <= 86400:
        raise ValueError
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _add_flag(parser: argparse._ActionsContainer, row: Setting) -> None:
    text = f"{row.reason} [{row.variable}, {row.unit}, default: {row.shown_default}]"
    parser.add_argument(row.flag, dest=row.name, metavar="VALUE", help=text.replace("%", "%%"))


def _serve(settings: Settings, sources: dict[str, str], warnings: list[str], *, print_config: bool) -> int:
    if print_config:
        for row in ROWS:
            print(f"{row.variable}={row.kind.show(getattr(settings, row.name))}  # {sources[row.name]}")
        from clothing_gateway.image.decode import jpeg_decoder

        print(f"# JPEG decoder: {jpeg_decoder()}")
        for warning in warnings:
            _say(f"warning: {warning}")
        return DONE
    # The imports take a second, and PID 1 of a container receives no signal that it has no handler for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Not at the top: `--help` and `--print-config` need neither gRPC nor Flask.
    from clothing_gateway.gateway import Gateway, StartError
    from clothing_gateway.limits import heap, memory
    from clothing_gateway.telemetry import logs

    logger = logs.set_up(settings.log_level)
    if heap.bound_heap():
        heap.warm_heap()
        heap.keep_heap_trimmed()
    for warning in filter(None, (*warnings, memory.too_small(settings))):
        logger.warning(warning)
    try:
        gateway = Gateway(settings)
    except StartError as error:
        raise CommandError(str(error)) from None
    gateway.handle_signals()
    status = DONE if gateway.run() else FAILED
    # All is answered and logged. Finalizing the interpreter waits for threads whose clients are gone, and costs a fifth
    # of a second of CPU, on a busy node a second or more in which the pod keeps its node's resources.
    logging.shutdown()
    os._exit(status)


def _download(options: argparse.Namespace) -> int:
    # PID 1 of a container receives no signal that it has no handler for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    from clothing_gateway.commands.download import MAX_BYTES, Archive, DownloadError, download

    try:
        archives = [Archive.parse(text) for text in options.archives]
        download(
            archives,
            name=options.name,
            to=options.to,
            cache=options.cache or options.to / ".cache",
            max_bytes=options.max_bytes or MAX_BYTES,
        )
    except DownloadError as error:
        _say(f"error: {error}")
        return FAILED
    except OSError as error:
        _say(f"error: {error}")
        return FAILED
    return DONE


def _doctor(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    # The findings report what failed; gRPC need not log it as well.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    logging.getLogger("clothing_gateway").addHandler(logging.NullHandler())
    from clothing_gateway.commands.doctor import Question, examine, own, report

    try:
        running = parser.parse_args(["serve", *own.flags_of_the_gateway()])
        flags = {row.name: getattr(options, row.name) or getattr(running, row.name) for row in ROWS}
        findings: list[report.Finding] = []
        for finding in examine(Question(os.environ, flags, options.admin, options.photo)):
            findings.append(finding)
            if not options.json:
                print(report.as_text(finding), flush=True)
        print(report.as_json(findings) if options.json else report.summary(findings), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return DONE if report.healthy(findings) else FAILED


def _classify(settings: Settings, options: argparse.Namespace) -> int:
    from clothing_gateway.client import ATTEMPTS, RETRY_SECONDS, TIMEOUT_SECONDS, Client
    from clothing_gateway.commands import classify
    from clothing_gateway.commands.output import ResultsError

    # A failure is reported once, as the command's error, and not by the log as well.
    logging.getLogger("clothing_gateway").addHandler(logging.NullHandler())
    parallel = options.parallel or classify.PARALLEL
    notes = classify.Notes()
    way: AbstractContextManager[classify.Ask]
    try:
        if options.gateway is None:
            way = classify.by_server(settings)
        else:
            client = Client(
                options.gateway,
                key=_key(options.key_file),
                timeout=options.timeout or TIMEOUT_SECONDS,
                attempts=options.attempts or ATTEMPTS,
                retry_seconds=RETRY_SECONDS if options.retry_seconds is None else options.retry_seconds,
                connections=parallel,
                on_retry=notes.retry,
            )
            way = classify.by_gateway(client, options.top)
    except ValueError as error:
        _say(f"error: {error}")
        return USAGE
    output = classify.Output(options.top, json=options.json, csv=options.csv, resume=options.resume)
    try:
        with way as ask:
            return DONE if classify.run(options.photos, ask, output, parallel, notes) else FAILED
    except (classify.CommandError, ResultsError) as error:
        raise CommandError(str(error)) from None
    except BrokenPipeError:
        raise
    except OSError as error:  # a photo's own are its outcome
        raise CommandError(f"can't write the results: {error.strerror}") from None


def _key(path: str | None) -> str | None:
    """The API key, from a file or the environment.

    It is never a flag's value, which all users of the machine can see.
    """
    if path is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise CommandError(f"can't read {path}: {error.strerror}") from None
