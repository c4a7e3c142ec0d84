"""`clothing-model verify`: checks that a model can be served and used.

Needs no TensorFlow. It fails a build or a pod's start with a reason, where TensorFlow Serving logs
`No versions of servable …` for ever.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from clothing_contract import ContractError, contract
from clothing_contract import signature as rules
from clothing_model import savedmodel
from clothing_model.commands.options import image_size, read_labels
from clothing_model.errors import ModelError
from clothing_model.savedmodel import (
    DEFAULT_SIGNATURE,
    INIT_SIGNATURE,
    SavedModel,
    Signature,
    Tensor,
    protowire,
    warmup,
)

ERROR, WARNING, OK = "error", "warning", "ok"


@dataclass(frozen=True)
class Finding:
    """One finding of a check: level, message and place.

    An error prevents serving; a warning may be intended.
    """

    level: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.level:8} {self.path}: {self.message}"


@dataclass(frozen=True)
class Expected:
    """Configuration of gateway and server to check a model against.

    What is empty is read from the model, as the gateway does.
    """

    labels: tuple[str, ...] | None = None
    name: str = ""
    signature: str = DEFAULT_SIGNATURE
    input: str = ""
    output: str = ""
    size: tuple[int, int] | None = None  # height, width
    xla: bool = False


@dataclass
class Report:
    """The findings of a verification, and how many models and versions it read."""

    findings: list[Finding] = field(default_factory=list)
    models: int = 0
    versions: int = 0

    def add(self, level: str, path: Path, message: str) -> None:
        """Note a finding of one of the levels ``ERROR``, ``WARNING``, ``OK``."""
        self.findings.append(Finding(level, str(path), message))

    def count(self, level: str) -> int:
        """Number of findings of a level."""
        return sum(1 for finding in self.findings if finding.level == level)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``verify`` command."""
    parser = subparsers.add_parser(
        "verify",
        description="Check that models can be served, and used by the gateway. One line per finding; exits with 1 "
        "where there is an error. Needs no TensorFlow.",
    )
    parser.add_argument(
        "path", type=Path, metavar="PATH",
        help="a version folder, a model's folder, a folder of models, or an image's root, with models in PATH/models",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--strict", action="store_true", help="exit with 1 on warnings, too")
    parser.add_argument("--name", default="", metavar="NAME", help="the model that must be among them: model.name")
    parser.add_argument(
        "--labels", metavar="LABELS", help="the labels that the gateway will have: a list, a file or a folder of photos"
    )
    parser.add_argument("--signature-name", default=DEFAULT_SIGNATURE, metavar="NAME", help="model.signatureName")
    parser.add_argument("--input-name", default="", metavar="NAME", help="model.inputName (default: the only one)")
    parser.add_argument("--output-name", default="", metavar="NAME", help="model.outputName (default: the only one)")
    parser.add_argument("--image-size", metavar="N|WxH", help="model.imageSize, for a model whose input leaves it open")
    parser.add_argument(
        "--xla", action="store_true", help="the server will run with --xla_cpu_compilation_enabled (or _gpu_)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the ``verify`` command.

    Raises:
        ModelError: no folder at the path.

    """
    expected = Expected(
        labels=read_labels(args.labels) if args.labels else None,
        name=args.name,
        signature=args.signature_name,
        input=args.input_name,
        output=args.output_name,
        size=image_size(args.image_size),
        xla=args.xla,
    )
    report = verify(args.path, expected)
    failed = bool(report.count(ERROR) or (args.strict and report.count(WARNING)))
    if args.json:
        summary = {"ok": not failed, "models": report.models, "versions": report.versions}
        print(json.dumps({**summary, "findings": [asdict(finding) for finding in report.findings]}, indent=2))
    else:
        for finding in report.findings:
            print(finding)
        print(
            f"{args.path}: {_count(report.models, 'model')}, {_count(report.versions, 'version')}, "
            f"{_count(report.count(ERROR), 'error')}, {_count(report.count(WARNING), 'warning')}"
        )
    return 1 if failed else 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def verify(path: Path, expected: Expected) -> Report:
    """Check all that PATH holds."""
    if not path.exists():
        raise ModelError(f"{path} does not exist: give a model's folder, or an image's root")
    if not path.is_dir():
        raise ModelError(f"{path} is a file: give the folder that `clothing-model convert` wrote")
    report = Report()
    if (path / "saved_model.pb").exists():
        report.models = 1
        _check_name(report, path, [path.resolve().parent.name], expected)
        _check_version(report, path, expected)
        return report
    models = [path] if _versions(path) else list(_models(path))
    if not models:
        report.add(
            ERROR, path,
            "it holds no model: neither a folder named by a number (NAME/1) with a saved_model.pb, nor folders that "
            "hold one. Make it with `clothing-model convert`",
        )  # fmt: skip
        return report
    report.models = len(models)
    _check_name(report, path, [model.resolve().name for model in models], expected)
    for model in models:
        if not expected.name or model.resolve().name == expected.name:
            _check_model(report, model, expected)
    return report


def _check_name(report: Report, path: Path, names: Sequence[str], expected: Expected) -> None:
    if expected.name and expected.name not in names:
        report.add(
            ERROR, path,
            f"it holds no model {expected.name!r}, only {', '.join(names)}: the folder's name, the server's "
            "--model_name and model.name of the chart are the same name",
        )  # fmt: skip


def _versions(folder: Path) -> list[Path]:
    """Folders named by a number, lowest first, with or without a model in them."""
    found = [child for child in folder.iterdir() if savedmodel.is_version(child.name) and child.is_dir()]
    return sorted(found, key=lambda child: (int(child.name), child.name))


def _models(path: Path) -> Iterator[Path]:
    """Models' folders in a folder of models or in an image's root."""
    folder = path / "models" if (path / "models").is_dir() else path
    if _versions(folder):
        yield folder
        return
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith(".") and (_versions(child) or _unversioned(child)):
            yield child


def _unversioned(folder: Path) -> bool:
    """Whether the folder holds a model without a version folder, an error."""
    return any((folder / name).exists() for name in ("saved_model.pb", "saved_model.pbtxt", "variables"))


def _check_model(report: Report, model: Path, expected: Expected) -> None:
    versions = _versions(model)
    if not versions:
        _check_version(report, model, expected)
        return
    for before, after in itertools.pairwise(versions):
        if int(before.name) == int(after.name):
            report.add(ERROR, after, f"it is the same version as {before.name}: delete one of them")
    for child in sorted(model.iterdir()):
        if child.is_dir() and child not in versions and not child.name.startswith("."):
            report.add(WARNING, child, "TensorFlow Serving passes it by: a version is named by a number")
    for version in versions:
        _check_version(report, version, expected)


def _check_version(report: Report, path: Path, expected: Expected) -> None:
    before = report.count(ERROR)
    if savedmodel.is_version(path.resolve().name):
        report.versions += 1
    else:
        report.add(
            ERROR, path,
            "it is in no version folder, and TensorFlow Serving finds a model only in a folder named by a number "
            f"(`No versions of servable found under base path`): move it to {path}/1, or run `clothing-model convert "
            f"{path} --name {path.resolve().name} --output DIR`",
        )  # fmt: skip
    _check_access(report, path)
    try:
        model = savedmodel.read(path)
    except (ModelError, OSError) as error:
        report.add(ERROR, path, _without(path, str(error)))
        return
    if model.path != path:  # a version folder that holds no saved_model.pb itself, but another that does
        report.add(ERROR, path, f"it holds no saved_model.pb, but {model.path} does: remove the extra folder level")
        return
    for problem in model.problems:
        report.add(ERROR, path, _without(path, problem))
    if "serve" not in model.tags:
        report.add(
            ERROR, path,
            f"its tags are {', '.join(model.tags) or 'none'}, and TensorFlow Serving loads `serve`: save it with "
            "tf.saved_model.save",
        )  # fmt: skip
    if not expected.xla and savedmodel.needs_xla(path):
        report.add(
            ERROR, path,
            "it has functions with jit_compile=True, and TensorFlow Serving fails each call of them: save it with "
            "jit_compile=False, or start the server with --xla_cpu_compilation_enabled (here: --xla)",
        )  # fmt: skip
    found = _check_signature(report, model, expected)
    if found is not None:
        photo, scores = found
        _check_labels(report, model, scores, expected)
        _check_contract(report, model, scores, expected)
        _check_warmup(report, model)
        if report.count(ERROR) == before:
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            report.add(OK, path, f"{_shown(photo)} -> {_shown(scores)}, {size / 1e6:.1f} MB")


def _without(path: Path, message: str) -> str:
    """The message without a leading path, which its line already names."""
    return message.removeprefix(f"{path} ").removeprefix(f"{path}{os.sep}")


def _shown(named: tuple[str, Tensor]) -> str:
    name, tensor = named
    shape = "of any shape" if tensor.shape is None else f"({', '.join(map(str, tensor.shape))})"
    return f"{name} {tensor.dtype.removeprefix('DT_').lower()} {shape}"


def _check_access(report: Report, path: Path) -> None:
    """Check that the server, which runs as another user, may read the files."""
    closed = [each for each in (path, *path.rglob("*")) if not _readable(each)]
    if closed:
        report.add(ERROR, closed[0], "this user can't read it: chmod -R a+rX it")
        return
    private = [each for each in (path, *path.rglob("*")) if each.stat().st_mode & (0o5 if each.is_dir() else 0o4) == 0]
    if private:
        report.add(
            WARNING, private[0], "only its owner and group can read it, and a server in a container is neither, as a "
            "rule: chmod -R a+rX it",
        )  # fmt: skip


def _readable(path: Path) -> bool:
    return os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK)


def _check_signature(
    report: Report, model: SavedModel, expected: Expected
) -> tuple[tuple[str, Tensor], tuple[str, Tensor]] | None:
    """Check the input and output that the gateway will use.

    The rules and their messages are the gateway's.
    """
    signature = model.signatures.get(expected.signature)
    if signature is None:
        names = ", ".join(name for name in model.signatures if name != INIT_SIGNATURE) or "none"
        report.add(
            ERROR, model.path,
            f"it has no signature {expected.signature}, only {names}: save it with signatures=…, or set "
            "model.signatureName of the chart",
        )  # fmt: skip
        return None
    try:
        photo = rules.choose("input", expected.input, signature.inputs, _say)
        scores = rules.choose("output", expected.output, signature.outputs, _say)
    except ContractError as error:
        report.add(ERROR, model.path, str(error))
        return None
    checks: tuple[Callable[[], object], ...] = (
        lambda: rules.require_photos(expected.signature, signature.method, (), _say),
        lambda: rules.require_alone(photo, signature.inputs, signature.defaults, _say),
        lambda: _check_photo(photo, signature.inputs[photo], model, expected),
        lambda: rules.width(scores, signature.outputs[scores]),
    )
    before = report.count(ERROR)
    for check in checks:
        try:
            check()
        except ContractError as error:
            report.add(ERROR, model.path, str(error))
    if report.count(ERROR) > before:
        return None
    return (photo, signature.inputs[photo]), (scores, signature.outputs[scores])


def _check_photo(name: str, tensor: Tensor, model: SavedModel, expected: Expected) -> None:
    """ContractError where the gateway has no photo for the input."""
    try:
        noted = contract.Input.read(model.description)
    except ContractError as error:
        raise ContractError(f"{savedmodel.DESCRIPTION}: {error}: convert it again") from None
    is_open = tensor.shape is None or -1 in tensor.shape[1:]
    size = (expected.size[1], expected.size[0]) if expected.size else noted.image_size if is_open else None
    # Of pixels, the model's graph orders the channels.
    rules.photo(name, tensor, size, noted.channels if tensor.dtype == "DT_FLOAT" else contract.CHANNELS[0], _say)


def _say(name: str) -> str:
    value, option = f"model.{contract.key(name)} of the chart", f"--{name.replace('_', '-')}"
    return f"{value} ({option} of clothing-model convert)" if name == "channels" else f"{value} (here: {option})"


def _check_labels(report: Report, model: SavedModel, scores: tuple[str, Tensor], expected: Expected) -> None:
    noted = model.description.get("labels")
    width = scores[1].shape[-1] if scores[1].shape and scores[1].shape[-1] > 0 else None
    for labels, where in ((noted, f"noted in {savedmodel.DESCRIPTION}"), (expected.labels, "given")):
        if labels and not savedmodel.serves(width, len(labels)):
            report.add(
                ERROR, model.path,
                f"{len(labels)} labels are {where} ({', '.join(labels)}), but its output {scores[0]} has {width} "
                "classes: each photo would get another class's name",
            )  # fmt: skip
    if noted and expected.labels and len(noted) == len(expected.labels) and tuple(noted) != expected.labels:
        position = next(at for at, pair in enumerate(zip(noted, expected.labels, strict=True)) if pair[0] != pair[1])
        report.add(
            ERROR, model.path,
            f"the labels given are not those noted in {savedmodel.DESCRIPTION}, or in another order: class {position} "
            f"is {expected.labels[position]!r} there and {noted[position]!r} in the model",
        )  # fmt: skip
    if not noted and not expected.labels:
        report.add(
            WARNING, model.path,
            "no labels are noted in it, so nothing tells whether the chart's fit: convert it with --labels",
        )  # fmt: skip


def _check_contract(report: Report, model: SavedModel, scores: tuple[str, Tensor], expected: Expected) -> None:
    """Check what the model's description notes of its scores."""
    noted = model.description
    width = scores[1].shape[-1] if scores[1].shape and scores[1].shape[-1] > 0 else None
    labels = len(expected.labels or noted.get("labels") or ())
    try:
        kind = contract.Output.read(noted).scores
    except ContractError as error:
        report.add(ERROR, model.path, f"{savedmodel.DESCRIPTION}: {error}: convert it again")
        return
    if labels and kind != contract.AUTO and savedmodel.serves(width, labels):
        problem = contract.scores_problem(kind, width, labels, lambda name: f"--{name} of clothing-model convert")
        if problem:
            report.add(ERROR, model.path, f"its output {scores[0]} {problem}")


def _check_warmup(report: Report, model: SavedModel) -> None:
    path = model.path / savedmodel.WARMUP
    if not path.exists():
        report.add(
            WARNING,
            model.path,
            "it has no warm-up requests, so the first photo after a start waits: convert it with --warmup",
        )
        return
    try:
        count = 0
        for record in warmup.records(path):
            count += 1
            problem = _request_problem(model, memoryview(record))
            if problem:
                report.add(
                    ERROR, path, f"its request {count} {problem}: the server would refuse the version. Convert again"
                )
    except (OSError, ValueError) as error:
        report.add(ERROR, path, f"{_without(path, str(error))}: the server would refuse the version. Convert again")
        return
    if count > warmup.MAX_RECORDS:
        report.add(ERROR, path, f"it has {count} requests, and TensorFlow Serving takes {warmup.MAX_RECORDS}")
    if not count:
        report.add(WARNING, path, "it is empty, so nothing is warmed up: convert again")


def _request_problem(model: SavedModel, record: memoryview) -> str | None:
    """Why a server would reject a PredictionLog; None where it accepts it.

    Field numbers are those of tensorflow_serving/apis and tensor.proto.

    The name of the model in it is of no interest to a server, which knows whose file it is.
    """
    logs = list(protowire.messages(record, 6))
    if not logs:
        return "is not a Predict"
    request = next(protowire.messages(logs[-1], 1), memoryview(b""))
    key = protowire.string(next(protowire.messages(request, 1), memoryview(b"")), 3) or DEFAULT_SIGNATURE
    signature: Signature | None = model.signatures.get(key)
    if signature is None:
        return f"calls the signature {key}, which the model lacks"
    inputs = protowire.mapping(request, 2)
    if set(inputs) != set(signature.inputs):
        return f"has the inputs {', '.join(sorted(inputs)) or 'none'}, not {', '.join(signature.inputs)}"
    for name, data in inputs.items():
        wanted = signature.inputs[name]
        dtype = savedmodel.dtype_name(protowire.integer(data, 1))
        shape = savedmodel.shape(next(protowire.messages(data, 2), memoryview(b"")))
        if dtype != wanted.dtype:
            return f"gives {name} as {dtype}, not {wanted.dtype}"
        if wanted.shape is not None and not _fits(shape, wanted.shape):
            return f"gives {name} the shape {shape}, not {wanted.shape}"
    return None


def _fits(shape: tuple[int, ...] | None, wanted: tuple[int, ...]) -> bool:
    return (
        shape is not None
        and len(shape) == len(wanted)
        and all(want in (-1, have) for have, want in zip(shape, wanted, strict=True))
    )
