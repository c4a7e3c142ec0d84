"""SavedModel folders: signatures, files and problems, read without TensorFlow.

Field numbers are those of tensorflow/core/protobuf/{saved_model,meta_graph,saved_object_graph}.proto.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clothing_contract import signature as rules
from clothing_model.errors import ModelError
from clothing_model.savedmodel import protowire

DEFAULT_SIGNATURE = "serving_default"
INIT_SIGNATURE = "__saved_model_init_op"
DESCRIPTION = Path("assets.extra") / "model.json"
WARMUP = Path("assets.extra") / "tf_serving_warmup_requests"

_LFS_START = b"version https://git-lfs.github.com/spec/"
_MUST_COMPILE = "_XlaMustCompile"  # the attribute of a function with jit_compile=True
_INDEX_MAGIC = 0xDB4775248B80FB57

# tensorflow/core/framework/types.proto
_DTYPES = {
    0: "DT_INVALID", 1: "DT_FLOAT", 2: "DT_DOUBLE", 3: "DT_INT32", 4: "DT_UINT8", 5: "DT_INT16", 6: "DT_INT8",
    7: "DT_STRING", 8: "DT_COMPLEX64", 9: "DT_INT64", 10: "DT_BOOL", 14: "DT_BFLOAT16", 17: "DT_UINT16",
    18: "DT_COMPLEX128", 19: "DT_HALF", 20: "DT_RESOURCE", 21: "DT_VARIANT", 22: "DT_UINT32", 23: "DT_UINT64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor(rules.Tensor):
    """An input or output of a signature, with its name in the graph."""

    name: str


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs by name, and the method name.

    A method name is ``tensorflow/serving/predict``, for example.
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    method: str
    defaults: tuple[str, ...] = ()  # inputs that a request may omit


@dataclass(frozen=True)
class SavedModel:
    """Contents of a version folder."""

    path: Path
    tags: tuple[str, ...]
    tensorflow_version: str
    signatures: dict[str, Signature]
    has_variables: bool
    problems: tuple[str, ...] = ()
    description: dict[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> int | None:
        """The folder's number; None where its name is no number."""
        return int(self.path.name) if is_version(self.path.name) else None

    @property
    def model_name(self) -> str:
        """Name of the folder above the version folder: the model's name in serving."""
        folder = self.path.resolve()
        return folder.parent.name if is_version(folder.name) else folder.name


def is_version(name: str) -> bool:
    """Whether TensorFlow Serving treats a folder of this name as a version."""
    return re.fullmatch(r"[0-9]+", name) is not None


def version_folders(model: Path) -> dict[int, Path]:
    """The version folders of a model's folder, oldest first."""
    found = {int(child.name): child for child in model.iterdir() if is_version(child.name) and child.is_dir()}
    return dict(sorted(found.items()))


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer, the text in place of a file in Git LFS."""
    with path.open("rb") as file:
        return file.read(len(_LFS_START)) == _LFS_START


def lfs_message(path: Path) -> str:
    """The error message for a Git LFS pointer, with the fix."""
    return (
        f"{path} is a Git LFS pointer ({path.stat().st_size} bytes of text), not the file itself: "
        "run `git lfs install` and `git lfs pull` in the repository that it comes from"
    )


def locate(path: Path) -> Path:
    """Find the version folder that a path names.

    The path is the version folder, its saved_model.pb, or a model's folder with versions.
    """
    if path.is_file() and path.name == "saved_model.pb":
        return path.parent
    if not path.exists():
        raise ModelError(f"{path} does not exist: give the folder that holds saved_model.pb, or its parent")
    if not path.is_dir():
        raise ModelError(f"{path} is a file: give a SavedModel's folder, or make one with `clothing-model convert`")
    if (path / "saved_model.pb").exists():
        return path
    versions = {number: folder for number, folder in version_folders(path).items()
                if (folder / "saved_model.pb").exists()}  # fmt: skip
    if versions:
        return versions[max(versions)]
    if (path / "saved_model.pbtxt").exists():
        raise ModelError(f"{path} holds saved_model.pbtxt, the text form: save the model again in the binary form")
    raise ModelError(
        f"{path} holds no saved_model.pb, and no folder named by a number (such as {path}/1) that does: "
        "give a SavedModel's folder, or make one with `clothing-model convert`"
    )


def read(path: Path) -> SavedModel:
    """Read a version folder.

    What prevents serving is listed in `problems`, not raised.
    """
    folder = locate(path)
    pb = folder / "saved_model.pb"
    if is_lfs_pointer(pb):
        raise ModelError(lfs_message(pb))
    try:
        graph = _serving_graph(memoryview(pb.read_bytes()))
    except protowire.WireError as error:
        raise ModelError(f"{pb} is not a SavedModel, or is cut short: {error}") from error
    if graph is None:
        raise ModelError(f"{pb} is not a SavedModel: it holds no graph")
    meta = next(iter(protowire.messages(graph, 1)), memoryview(b""))
    has_variables = _has_variables(graph)
    return SavedModel(
        path=folder,
        tags=tuple(protowire.strings(meta, 4)),
        tensorflow_version=protowire.string(meta, 5),
        signatures={key: _signature(value) for key, value in sorted(protowire.mapping(graph, 5).items())},
        has_variables=has_variables,
        problems=tuple(_variables_problems(folder) if has_variables else ()),
        description=_description(folder),
    )


def needs_xla(folder: Path) -> bool:
    """Whether a version folder's graph has a function with ``jit_compile=True``.

    TensorFlow Serving fails each call of such a function unless it was started with --xla_cpu_compilation_enabled.
    """
    pb = folder / "saved_model.pb"
    data = pb.read_bytes() if pb.exists() else b""
    if _MUST_COMPILE.encode() not in data:  # iterating over a large graph takes a second
        return False
    return any(
        protowire.integer(protowire.mapping(function, 5).get(_MUST_COMPILE, memoryview(b"")), 5)
        for graph in protowire.messages(memoryview(data), 2)
        for graph_def in protowire.messages(graph, 2)
        for library in protowire.messages(graph_def, 2)
        for function in protowire.messages(library, 1)
    )


def score_outputs(model: SavedModel) -> list[str]:
    """Outputs of the default signature that can hold scores, by type and shape.

    Of several outputs, usually one remains: the output that the description names, else floating-point numbers of
    (batch, classes), as many as the labels where these are known. Classes by number or name, embeddings and images are
    none, whatever their names.
    """
    signature = model.signatures.get(DEFAULT_SIGNATURE)
    outputs = signature.outputs if signature else {}
    if (chosen := model.description.get("outputName")) in outputs:
        return [chosen]
    fitting = [
        name
        for name, output in outputs.items()
        if output.dtype in rules.SCORE_TYPES and (output.shape is None or len(output.shape) == 2)
    ]
    labels = len(model.description.get("labels", ()))
    as_many = [name for name in fitting if width(outputs[name]) == labels]
    return as_many or fitting


def photo_signature(model: SavedModel) -> tuple[Tensor, Tensor] | None:
    """The one input of the default signature, and its scores.

    Of several possible outputs, the first has the scores.
    """
    signature = model.signatures.get(DEFAULT_SIGNATURE)
    if signature is None or len(signature.inputs) != 1 or not signature.outputs:
        return None
    name = next(iter([*score_outputs(model), *signature.outputs]))
    return next(iter(signature.inputs.values())), signature.outputs[name]


def width(output: Tensor) -> int | None:
    """Number of classes; None where the signature leaves it open."""
    return output.shape[-1] if output.shape and output.shape[-1] > 0 else None


def serves(classes: int | None, labels: int) -> bool:
    """Whether an output of so many classes serves the labels.

    One number (a sigmoid's or its logit) serves two labels; None is an output whose width the signature leaves open.
    """
    return classes in (None, labels) or (classes, labels) == (1, 2)


def usability_problems(model: SavedModel) -> list[str]:
    """Reasons why the gateway could not use the model; empty where it can."""
    problems = []
    if "serve" not in model.tags:
        problems.append(
            f"its tags are {', '.join(model.tags) or 'none'}: TensorFlow Serving loads `serve`. "
            "Save it with tf.saved_model.save, or pass --saved_model_tags to the server"
        )
    names = [name for name in model.signatures if name != INIT_SIGNATURE]
    signature = model.signatures.get(DEFAULT_SIGNATURE)
    if signature is None:
        problems.append(
            f"it has no signature {DEFAULT_SIGNATURE}; it has {', '.join(names) or 'none'}. "
            "Save it with signatures=…, or name one of these in the gateway's GATEWAY_SIGNATURE_NAME"
        )
        return problems
    if len(signature.inputs) != 1:
        problems.append(f"{DEFAULT_SIGNATURE} has {len(signature.inputs)} inputs: a photo classifier has one")
    if not signature.outputs:
        problems.append(f"{DEFAULT_SIGNATURE} has no output")
    found = photo_signature(model)
    labels = model.description.get("labels")
    if found and labels and not serves(classes := width(found[1]), len(labels)):
        problems.append(f"{len(labels)} labels are noted in {DESCRIPTION}, but the output has {classes} classes")
    return problems


def _serving_graph(data: memoryview) -> memoryview | None:
    """The meta graph with the one tag `serve`, or the first one."""
    graphs = list(protowire.messages(data, 2))
    for graph in graphs:
        meta = next(iter(protowire.messages(graph, 1)), memoryview(b""))
        if protowire.strings(meta, 4) == ["serve"]:
            return graph
    return graphs[0] if graphs else None


def _signature(data: memoryview) -> Signature:
    return Signature(
        inputs={key: _tensor(value) for key, value in sorted(protowire.mapping(data, 1).items())},
        outputs={key: _tensor(value) for key, value in sorted(protowire.mapping(data, 2).items())},
        method=protowire.string(data, 3),
        defaults=tuple(protowire.mapping(data, 4)),
    )


def _tensor(data: memoryview) -> Tensor:
    sizes: tuple[int, ...] | None = ()
    for message in protowire.messages(data, 3):
        sizes = shape(message)
    return Tensor(dtype_name(protowire.integer(data, 2)), sizes, protowire.string(data, 1))


def shape(data: memoryview) -> tuple[int, ...] | None:
    """A TensorShapeProto's sizes; None where the rank is unknown."""
    if protowire.integer(data, 3):
        return None
    return tuple(protowire.signed(protowire.integer(dimension, 1)) for dimension in protowire.messages(data, 2))


def dtype_name(number: int) -> str:
    """The name of a number of types.proto: 1 is DT_FLOAT."""
    return _DTYPES.get(number, f"DT_{number}")


def _has_variables(graph: memoryview) -> bool:
    objects = list(protowire.messages(graph, 7))
    if objects:  # TensorFlow 2: an object graph; a node's field 7 says that it is a variable
        return any(any(True for _ in protowire.messages(node, 7)) for node in protowire.messages(objects[-1], 1))
    variable_ops = {"VarHandleOp", "VariableV2", "Variable"}
    return any(
        protowire.string(node, 2) in variable_ops
        for graph_def in protowire.messages(graph, 2)
        for node in protowire.messages(graph_def, 1)
    )


def _variables_problems(folder: Path) -> list[str]:
    variables = folder / "variables"
    index = variables / "variables.index"
    if not index.exists():
        return [
            f"{index} is missing: the graph has variables, but not their values. Copy the whole folder, variables/ too"
        ]
    if is_lfs_pointer(index):
        return [lfs_message(index)]
    try:
        sizes = _shard_sizes(memoryview(index.read_bytes()))
    except (protowire.WireError, struct.error, IndexError) as error:
        return [f"{index} is broken or cut short ({error}): copy the folder again"]
    problems = []
    for number, size in sorted(sizes.items()):
        shard = variables / f"variables.data-{number:05}-of-{len(sizes):05}"
        if not shard.exists():
            problems.append(f"{shard} is missing: the weights were not copied with the graph. Copy variables/ too")
        elif is_lfs_pointer(shard):
            problems.append(lfs_message(shard))
        elif shard.stat().st_size < size:
            problems.append(f"{shard} has {shard.stat().st_size} of {size} bytes: it was cut short. Copy it again")
    return problems


def _shard_sizes(data: memoryview) -> dict[int, int]:
    """Size in bytes of each data file, by its number, from variables.index.

    The index is an uncompressed LevelDB table (tensorflow/core/util/tensor_bundle) whose values are BundleEntryProto
    and, under the empty key, BundleHeaderProto.
    """
    if len(data) < 48 or struct.unpack_from("<Q", data, len(data) - 8)[0] != _INDEX_MAGIC:
        raise protowire.WireError("it does not end as an index does")
    footer = data[-48:]
    _, at = _handle(footer, 0)
    (offset, length), _ = _handle(footer, at)
    sizes: dict[int, int] = {}
    for _, where in _block(data[offset : offset + length]):
        (block_offset, block_length), _ = _handle(where, 0)
        if data[block_offset + block_length] != 0:
            raise protowire.WireError("it is compressed, which TensorFlow does not do")
        for key, value in _block(data[block_offset : block_offset + block_length]):
            if not key:
                for shard in range(protowire.integer(value, 1, 1)):
                    sizes.setdefault(shard, 0)
                continue
            shard, end = protowire.integer(value, 3), protowire.integer(value, 4) + protowire.integer(value, 5)
            sizes[shard] = max(sizes.get(shard, 0), end)
    return sizes


def _handle(data: memoryview, at: int) -> tuple[tuple[int, int], int]:
    """Decode a block handle: ((offset, length) of the block, position after it)."""
    first, at = protowire.varint(data, at)
    second, at = protowire.varint(data, at)
    return (first, second), at


def _block(block: memoryview) -> list[tuple[bytes, memoryview]]:
    """Entries of a LevelDB block, key and value.

    An entry shares a prefix of its key with the one before; restart points follow the entries.
    """
    (restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end = len(block) - 4 * (restarts + 1)
    entries: list[tuple[bytes, memoryview]] = []
    key, at = b"", 0
    while at < end:
        shared, at = protowire.varint(block, at)
        unshared, at = protowire.varint(block, at)
        length, at = protowire.varint(block, at)
        key = key[:shared] + bytes(block[at : at + unshared])
        at += unshared
        entries.append((key, block[at : at + length]))
        at += length
    return entries


def _description(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / DESCRIPTION).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / DESCRIPTION} can't be read ({error}): delete it, or convert again") from error
    return found if isinstance(found, dict) else {}
