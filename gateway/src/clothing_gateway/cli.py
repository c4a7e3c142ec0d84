"""The command ``clothing-gateway``.

Ends with 0 when it did what it was asked, 1 when that failed, 2 when it was asked in a way that can't be done.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn

from clothing_gateway import __version__
from clothing_gateway.settings import Settings, SettingsError, flag_of, shown

DONE, FAILED, USAGE = 0, 1, 2

# The settings that say which model is asked and how; the others are about serving.
_MODEL_SETTINGS = (
    "model_tls",
    "model_tls_ca_file",
    "model_tls_certificate_file",
    "model_tls_key_file",
    "model_tls_server_name",
    "model_name",
    "model_version",
    "model_label",
    "signature_name",
    "input_name",
    "output_name",
    "image_size",
    "labels",
    "preprocessing",
    "resampling",
    "jpeg_scaling",
    "request_timeout_seconds",
)


class CommandError(Exception):
    """The command failed; the text says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and give its exit status."""
    options = _parser().parse_args(arguments)
    if options.command == "download":
        return _download(options)
    try:
        flags = {entry.name: getattr(options, entry.name, None) for entry in fields(Settings)}
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
        # The reader, `| head` say, has what it wanted. Nothing is left to be written, and so to fail, at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except CommandError as error:
        _say(f"error: {error}")
        return FAILED
    except KeyboardInterrupt:
        return 130
    return status


def _say(line: str) -> None:
    print(line, file=sys.stderr)


class _Version(argparse.Action):
    """Print the version and what decodes JPEGs, and end."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and what decodes JPEGs, and end")

    def __call__(self, *_: object) -> NoReturn:
        from clothing_gateway.photo import jpeg_decoder

        print(f"clothing-gateway {__version__} (JPEG: {jpeg_decoder()})")
        sys.exit(DONE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clothing-gateway",
        description="Takes a photo, by URL or upload, and asks TensorFlow Serving what is on it.",
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve",
        help="run the gateway",
        description="Run the gateway. Each flag has an environment variable; a flag goes before it.",
    )
    serve.add_argument("--version", action=_Version)
    serve.add_argument(
        "--print-config", action="store_true", help="print every setting and where it came from, and end"
    )
    for entry in fields(Settings):
        _add_flag(serve, entry)

    classify = commands.add_parser(
        "classify",
        help="classify one photo",
        description="Classify one photo: straight by a model server, over gRPC, or by a gateway.",
    )
    classify.add_argument("photo", metavar="PHOTO", help="a file; with --gateway also a URL")
    asked = classify.add_mutually_exclusive_group()
    asked.add_argument(
        "--server",
        dest="tf_serving_host",
        metavar="HOST:PORT",
        help="the model server (TF_SERVING_HOST, localhost:8500)",
    )
    asked.add_argument("--gateway", metavar="URL", help="the gateway, as in http://localhost:9696")
    classify.add_argument("--key-file", metavar="FILE", help="a file that holds the key for the gateway, and no more")
    classify.add_argument("--top", type=_positive, metavar="K", help="only the K best labels")
    classify.add_argument("--json", action="store_true", help="print JSON")
    for entry in fields(Settings):
        if entry.name in _MODEL_SETTINGS:
            _add_flag(classify, entry)

    download = commands.add_parser(
        "download",
        help="fetch a model for the model server",
        description="Fetch archives (.tar.gz, .tar, .zip) with versions of a model, from https://, http://, s3:// or "
        "gs://, and make TO/NAME/VERSION of each. Each is pinned by its SHA-256, and kept in the cache by it.",
    )
    download.add_argument(
        "archives",
        metavar="URL#sha256=HEX[&version=N]",
        nargs="+",
        help="an archive; version names what it doesn't: the model's files lie in it without a folder with a number",
    )
    download.add_argument("--name", required=True, help="the model's name")
    download.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the folder of models, /models say")
    download.add_argument("--cache", type=Path, metavar="FOLDER", help="where archives stay unpacked (TO/.cache)")
    download.add_argument(
        "--max-bytes", type=_positive, metavar="N", help="largest archive, and largest content of one (20 GiB)"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _add_flag(parser: argparse.ArgumentParser, entry: Field[Any]) -> None:
    about = entry.metadata
    default = f"default {about['default']}" if about["default"] else "empty by default"
    text = f"{about['reason']} [{about['variable']}, {about['unit']}, {default}]"
    parser.add_argument(flag_of(about["variable"]), dest=entry.name, metavar="VALUE", help=text.replace("%", "%%"))


def _serve(settings: Settings, sources: dict[str, str], warnings: list[str], *, print_config: bool) -> int:
    if print_config:
        for entry in fields(Settings):
            print(f"{entry.metadata['variable']}={shown(getattr(settings, entry.name))}  # {sources[entry.name]}")
        from clothing_gateway.photo import jpeg_decoder

        print(f"# JPEGs are decoded by {jpeg_decoder()}")
        for warning in warnings:
            _say(f"warning: {warning}")
        return DONE
    # The imports take a second, and PID 1 of a container never hears of a signal that it has no handler for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Not at the top: `--help` and `--print-config` need neither gRPC nor Flask.
    from clothing_gateway import logs, memory, resources
    from clothing_gateway.server import Gateway, StartError

    logger = logs.set_up(settings.log_level)
    if resources.bound_heap():
        resources.warm_heap()
    for warning in filter(None, (*warnings, memory.too_small(settings))):
        logger.warning(warning)
    try:
        gateway = Gateway(settings)
    except StartError as error:
        raise CommandError(str(error)) from None
    gateway.handle_signals()
    return DONE if gateway.run() else FAILED


def _download(options: argparse.Namespace) -> int:
    # PID 1 of a container never hears of a signal that it has no handler for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    from clothing_gateway.download import MAX_BYTES, Archive, DownloadError, download

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


class _Times:
    """How long each step took, in the order of the steps."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        yield
        self.milliseconds[name] = (time.perf_counter() - start) * 1000


def _classify(settings: Settings, options: argparse.Namespace) -> int:
    # What fails is said once, as the command's error, and not by the log as well.
    logging.getLogger("clothing_gateway").addHandler(logging.NullHandler())
    times = _Times()
    is_url = options.photo.startswith(("http://", "https://"))
    if options.gateway is not None:
        key = _read(Path(options.key_file)).decode("utf-8", "replace").strip() if options.key_file else None
        result = _ask_gateway(options.gateway, options.photo, times, settings, is_url=is_url, key=key)
    elif is_url:
        raise CommandError("a model server takes no URL: give a file, or ask a gateway with --gateway")
    else:
        result = _ask_server(Path(options.photo), times, settings)
    result["predictions"] = result["predictions"][: options.top]
    if options.json:
        print(json.dumps({**result, "milliseconds": {step: round(ms, 2) for step, ms in times.milliseconds.items()}}))
        return DONE
    width = max(len(prediction["label"]) for prediction in result["predictions"])
    print(f"model {result['model']['name']}, version {result['model']['version']}")
    for prediction in result["predictions"]:
        print(f"  {prediction['label']:<{width}}  {prediction['probability']:7.2%}  score {prediction['score']:8.3f}")
    print("  ".join(f"{step} {milliseconds:.1f} ms" for step, milliseconds in times.milliseconds.items()))
    return DONE


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"can't read {path}: {error.strerror}") from None


def _ask_server(path: Path, times: _Times, settings: Settings) -> dict[str, Any]:
    from clothing_gateway.classifier import prepare, ranked, read_header
    from clothing_gateway.deadline import Deadline
    from clothing_gateway.errors import GatewayError
    from clothing_gateway.predictor import Predictor

    with times.step("read"):
        data = _read(path)
    predictor = Predictor(settings)
    try:
        with times.step("metadata"):
            predictor.check()
            if predictor.not_ready:
                raise CommandError(predictor.not_ready)
            model = predictor.model()
        with times.step("decode"):
            element = prepare(data, read_header(data, settings, settings.decode_memory_bytes), model, settings)
        with times.step("predict"):
            prediction = predictor.predict(model, [element], Deadline.after(settings.request_timeout_seconds))
    except GatewayError as error:
        raise CommandError(f"{error.detail}" + (f" ({error.cause})" if error.cause else "")) from None
    finally:
        predictor.close()
    return {
        "model": {"name": model.name, "version": str(prediction.version)},
        "predictions": ranked(settings.labels, prediction.scores[0]),
    }


def _ask_gateway(
    base: str, photo: str, times: _Times, settings: Settings, *, is_url: bool, key: str | None
) -> dict[str, Any]:
    import urllib3

    if is_url:
        body, kind = json.dumps({"url": photo}).encode(), "application/json"
    else:
        with times.step("read"):
            body, kind = _read(Path(photo)), "application/octet-stream"
    address = base.rstrip("/") + "/classify"
    headers = {"Content-Type": kind} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        with times.step("gateway"):
            response = urllib3.request(
                "POST",
                address,
                body=body,
                headers=headers,
                retries=False,
                timeout=settings.request_timeout_seconds + 1,
            )
    except urllib3.exceptions.HTTPError as error:
        raise CommandError(f"can't reach {address}: {error}") from None
    try:
        answer: Any = response.json()
        if response.status == 200:
            return {"model": answer["model"], "predictions": answer["predictions"]}
        _refused(answer, response.status)
    except (ValueError, KeyError, TypeError):
        raise CommandError(f"{address} answered {response.status}, and not as a gateway does: is it one?") from None


def _refused(problem: Any, status: int) -> NoReturn:  # noqa: ANN401 - whatever JSON came
    raise CommandError(
        f"the gateway answered {status}, {problem['code']}: {problem['detail']} (request id {problem['request_id']})"
    )
