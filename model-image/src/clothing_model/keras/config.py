"""A Keras file's config, read as JSON: code, classes, inputs and outputs.

The code is what loading would run, the classes are those that it needs.

Keras 2 runs the Python in an .h5 whatever `safe_mode` says (CVE-2025-9905), and imports any module that a .keras
names; Keras 3 has had ways around its `safe_mode` (CVE-2025-1550, CVE-2025-8747, CVE-2025-9906). So what may stand in
a config is decided here, by lists of what networks consist of, before either Keras is imported.
"""

from __future__ import annotations

import builtins
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clothing_contract.contract import INDEPENDENT, LOGITS, SIGMOID, SOFTMAX
from clothing_model.errors import ModelError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Classes of Keras that run, or load from elsewhere, what the config names.
_UNSAFE_CLASSES = {
    "Lambda": "runs Python code that the file holds",
    "__lambda__": "runs Python code that the file holds",
    "TFSMLayer": "loads another model, from a path in the file",
    "TorchModuleWrapper": "unpickles what the file holds",
    "JaxLayer": "runs code that the file names",
    "FlaxLayer": "runs code that the file names",
    "ClassMethod": "calls a method that the file names",
    "InstanceMethod": "calls a method that the file names",
    "InstanceProperty": "reads an attribute that the file names",
    # A vocabulary may be the path of any file, or a URL (CVE-2025-12058).
    "IndexLookup": "opens a vocabulary, from a path in the file",
    "StringLookup": "opens a vocabulary, from a path in the file",
    "IntegerLookup": "opens a vocabulary, from a path in the file",
    "TextVectorization": "opens a vocabulary, from a path in the file",
}
# Where the parts of networks are, below keras, keras.src and the like. Not utils (get_file), config (its safe mode can
# be switched off), saving and preprocessing, whose functions open files and URLs.
_PARTS = (
    "activations|applications|constraints|dtype_policies|engine|initializers|layers|losses|metrics|mixed_precision|"
    "models|ops|optimizers|random|regularizers|quantizers"
)
_MODULE = re.compile(rf"(tf_)?keras(\.src|\.api|\._tf_keras\.keras|\.api\._v2\.keras)*(\.({_PARTS})(\.\w+)*)?")
# Functions of these are called with a layer's output alone.
_FUNCTIONS = re.compile(
    r"(tf_)?keras(\.src|\.api)*\.(activations|ops|losses|metrics|initializers|regularizers|constraints)(\.\w+)*"
    r"|tensorflow\.python\.ops\.((gen_)?(nn|math|array)_(ops|impl)|init_ops(_v2)?)"
)
# Names that Keras 2 gave to classes in small letters; any other such name is a function.
_SMALL_LETTERS = _words(
    "l1 l2 l1_l2 l1l2 orthogonal_regularizer max_norm non_neg min_max_norm unit_norm radial_constraint zeros ones "
    "constant identity orthogonal uniform normal random_uniform random_normal truncated_normal variance_scaling "
    "glorot_uniform glorot_normal he_uniform he_normal lecun_uniform lecun_normal"
)
# What stands for a value, not for a class.
_MARKERS = _words(
    "__bytes__ __ellipsis__ __keras_tensor__ __lambda__ __numpy__ __slice__ __tensor__ __tuple__ __typespec__"
)
# TensorFlow's functions in a network of Keras 2 (TFOpLambda), by their public names: those that compute numbers of
# numbers. Others open files (io.gfile.rmtree), load libraries (load_op_library) or call Python (py_function).
_PURE_MODULES = ("__operators__.", "bitwise.", "dtypes.", "image.", "linalg.", "math.", "nn.", "signal.")
_PURE_FUNCTIONS = _words(
    "abs acos add add_n argmax argmin argsort asin atan broadcast_to cast ceil clip_by_value complex concat cos "
    "cumsum divide einsum ensure_shape equal exp expand_dims eye fill floor gather gather_nd greater greater_equal "
    "identity less less_equal linspace logical_and logical_not logical_or matmul maximum meshgrid minimum multiply "
    "negative norm not_equal one_hot ones ones_like pad pow rank realdiv reduce_all reduce_any reduce_max "
    "reduce_mean reduce_min reduce_prod reduce_sum repeat reshape reverse roll round rsqrt scalar_mul shape sigmoid "
    "sign sin size slice sort split sqrt square squeeze stack stop_gradient strided_slice subtract tan tanh tensordot "
    "tile transpose truediv unstack where zeros zeros_like"
)
# Operations of TensorFlowOpLayer, which Keras 2 wrote until TensorFlow 2.3, by their names in a graph.
_PURE_OPERATIONS = _words(
    "Abs Add AddN AddV2 ArgMax AvgPool BiasAdd BroadcastTo Cast ClipByValue Concat ConcatV2 Conv2D Div DivNoNan Einsum "
    "Exp ExpandDims Fill Floor FloorDiv FusedBatchNormV3 GatherV2 Identity L2Loss Log MatMul Max MaxPool Maximum Mean "
    "Min Minimum MirrorPad Mul Neg OneHot Pack Pad PadV2 Pow Prod Range RealDiv Relu Relu6 Reshape ResizeBicubic "
    "ResizeBilinear ResizeNearestNeighbor ReverseV2 Round Rsqrt Shape Sigmoid Slice Softmax Split SplitV Sqrt Square "
    "SquaredDifference Squeeze StridedSlice Sub Sum Tanh Tile Transpose Unpack ZerosLike"
)


@dataclass(frozen=True)
class Finding:
    """A part of a network that Keras alone can't, or shall not, make."""

    layer: str
    class_name: str
    why: str


def read(path: Path) -> dict[str, Any]:
    """The config of a model in an .h5 or .keras file.

    Raises:
        ModelError: it is no JSON, or not a model's.

    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                text: Any = archive.read("config.json")
        else:
            import h5py

            with h5py.File(path, "r") as file:
                text = file.attrs["model_config"]
        config = json.loads(text)
    except (ValueError, KeyError, OSError, RecursionError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} has a config that can't be read ({error!r}): save or download it again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} has a config that is no model's: save the whole model with model.save('model.keras')")
    config.pop("compile_config", None)  # how it was trained, which is not loaded
    return config


def unsafe(config: dict[str, Any]) -> list[Finding]:
    """Parts that run code, or open files, of the file's choice."""
    found: dict[tuple[str, str], Finding] = {}
    for layer, node in _nodes(config):
        for name, why in _unsafe(node):  # a layer and the function in it are one
            found.setdefault((layer, why), Finding(layer, name, why))
    return list(found.values())


def foreign(config: dict[str, Any]) -> list[Finding]:
    """Parts whose class or function isn't of Keras, as far as the config says.

    An .h5 names no modules.
    """
    found = []
    for layer, node in _nodes(config):
        class_name, module = node.get("class_name"), node.get("module")
        if class_name is None or (class_name in _MARKERS and class_name != "__typespec__"):
            continue
        package, _, name = _name(node).rpartition(">")
        package = package or str(node.get("registered_name") or "").rpartition(">")[0]
        if module not in (None, "builtins") and not _is_kerases(module) and not _FUNCTIONS.fullmatch(str(module)):
            found.append(Finding(layer, name, f"is of the module {module}"))
        elif module is None and package:
            found.append(Finding(layer, name, f"is of the package {package}"))
        elif module is None and "module" in node:
            found.append(Finding(layer, name, "is no class of Keras"))
    return list(dict.fromkeys(found))


def functions(config: dict[str, Any]) -> list[str]:
    """The functions that a config names, as activations."""
    names = [_name(node) for _, node in _nodes(config) if node.get("class_name") == "function"]
    return list(dict.fromkeys(names))


def layers_of(config: dict[str, Any], class_name: str) -> list[str]:
    """The names of the layers whose class, or one of whose functions, has this name."""
    found = [
        layer
        for layer, node in _nodes(config)
        if _name(node).rpartition(">")[2] == class_name or class_name in _dict(node.get("config")).values()
    ]
    return list(dict.fromkeys(found))


def refuse(path: Path, config: dict[str, Any]) -> None:
    """Refuse what must not, or can't, be loaded without its author's Python.

    Raises:
        ModelError: names each such layer, and the way out.

    """
    if found := unsafe(config):
        raise ModelError(
            f"{path} is not loaded, as it would do more than compute: {_listed(found)}. "
            "If you trust whoever made the file as you trust a program of theirs, pass --trust"
        )
    if found := foreign(config):
        raise ModelError(f"{path} can't be loaded, as Keras lacks a part of it: {_listed(found)}\n  {OWN_LAYERS}")


OWN_LAYERS = (
    "If the model has layers or functions of its own, load it where they are defined, save it there with "
    "tf.saved_model.save or model.export, and give that folder."
)


def _listed(found: list[Finding]) -> str:
    texts = [f"{f'layer {each.layer}: ' if each.layer else ''}{each.class_name} {each.why}" for each in found]
    return "; ".join(texts[:5]) + (f"; and {len(texts) - 5} more" if len(texts) > 5 else "")


@dataclass(frozen=True)
class Outline:
    """Inputs and outputs as the config tells them, before anything is loaded.

    `inputs` are the shapes, the batch first, None where it isn't known; `widths` are the outputs' classes, None where
    only the loaded model tells. Empty: the config has another form.
    """

    inputs: dict[str, tuple[int | None, ...] | None] = field(default_factory=dict)
    widths: dict[str, int | None] = field(default_factory=dict)


def outline(config: dict[str, Any]) -> Outline:
    """Inputs and outputs of a functional or a sequential model."""
    layers = _layers(config)
    if not layers:
        return Outline()
    names = {_layers_name(layer): layer for layer in layers}
    inner = _dict(config.get("config"))
    if "output_layers" not in inner:  # Sequential
        shape = _input_shape(layers[0]) or _shape(inner, "build_input_shape")
        return Outline({_layers_name(layers[0]): shape}, {_layers_name(layers[-1]): _width(layers[-1], layers[:-1])})
    return Outline(
        {name: _input_shape(names[name]) for name in _ends(inner.get("input_layers")) if name in names},
        {name: _width(names[name], layers) for name in _ends(inner["output_layers"]) if name in names},
    )


def scores(config: dict[str, Any]) -> str | None:
    """What the output's numbers are, by the last layer's activation.

    None where the config doesn't tell: several outputs, or a last layer that has no such activation.
    """
    layers = _layers(config)
    inner = _dict(config.get("config"))
    ends = _ends(inner["output_layers"]) if "output_layers" in inner else [_layers_name(layer) for layer in layers[-1:]]
    last = next((layer for layer in layers if [_layers_name(layer)] == ends), None)
    if last is None:
        return None
    if last.get("class_name") in ("Sequential", "Functional", "Model"):
        return scores(last)
    settings = _dict(last.get("config"))
    if last.get("class_name") == "Softmax":
        return SOFTMAX
    activation = settings.get("activation") if last.get("class_name") in ("Dense", "Activation") else None
    if isinstance(activation, dict):  # {"class_name": "function", "config": "softmax"} of Keras 3
        activation = activation.get("config")
    if activation == "sigmoid":
        (width,) = outline(config).widths.values()
        return None if width is None else SIGMOID if width == 1 else INDEPENDENT
    if activation == "linear":
        return LOGITS if last.get("class_name") == "Dense" else None
    return SOFTMAX if activation == "softmax" else None


def weights_bytes(path: Path) -> int:
    """Bytes of a model's weights in its file; 0 where the file doesn't tell.

    The optimizer's aren't counted.
    """
    import h5py

    def measured(file: Any) -> int:
        sizes: list[int] = []

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):
                sizes.append(item.nbytes)

        file.visititems(visit)
        return sum(sizes)

    try:
        if not zipfile.is_zipfile(path):
            with h5py.File(path, "r") as file:
                return measured(file)
        with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as member, h5py.File(member) as file:
            return measured(file)
    except (KeyError, OSError, zipfile.BadZipFile):  # it is said when it is loaded
        return 0


def _layers_name(layer: dict[str, Any]) -> str:
    return str(_dict(layer.get("config")).get("name") or layer.get("name"))


# Layers whose output is as wide as their input.
_SAME_WIDTH = frozenset({"Activation", "Softmax", "Dropout", "ReLU", "LeakyReLU", "BatchNormalization", "Rescaling"})


def _width(layer: dict[str, Any], others: list[dict[str, Any]]) -> int | None:
    """Number of classes that a layer returns.

    `others` are the layers of its network, or those before it.
    """
    class_name, config = layer.get("class_name"), _dict(layer.get("config"))
    if class_name == "Dense":
        units = config.get("units")
        return units if isinstance(units, int) else None
    if class_name in ("Sequential", "Functional", "Model"):
        widths = list(outline(layer).widths.values())
        return widths[0] if len(widths) == 1 else None
    if class_name not in _SAME_WIDTH:
        return None
    before = [name for name in _sources(layer.get("inbound_nodes")) if name != config.get("name")]
    if "inbound_nodes" not in layer:  # of a Sequential
        return _width(others[-1], others[:-1]) if others else None
    found = [each for each in others if _layers_name(each) in before[:1]]
    return _width(found[0], [each for each in others if each is not layer]) if found else None


def _sources(nodes: Any) -> Iterator[str]:
    """The names of the layers that a layer's nodes take their inputs from."""
    if isinstance(nodes, dict):
        history = nodes.get("keras_history")
        if isinstance(history, list) and history and isinstance(history[0], str):
            yield history[0]
        for value in nodes.values():
            yield from _sources(value)
    elif isinstance(nodes, list):
        if len(nodes) >= 3 and isinstance(nodes[0], str):
            yield nodes[0]
        else:
            for value in nodes:
                yield from _sources(value)


def _layers(config: dict[str, Any]) -> list[dict[str, Any]]:
    inner = config.get("config")
    layers = inner if isinstance(inner, list) else _dict(inner).get("layers")  # a list until Keras 2.2
    if config.get("class_name") not in ("Sequential", "Functional", "Model") or not isinstance(layers, list):
        return []
    return [layer for layer in layers if isinstance(layer, dict)]


def _ends(value: Any) -> list[str]:
    """Layer names of input_layers or output_layers.

    They are [name, 0, 0], or a list or an object of such.
    """
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list) or not value:
        return []
    if isinstance(value[0], str):
        return [value[0]]
    return [name for each in value for name in _ends(each)]


def _input_shape(layer: dict[str, Any]) -> tuple[int | None, ...] | None:
    if layer.get("class_name") in ("Sequential", "Functional", "Model"):
        inputs = list(outline(layer).inputs.values())
        return inputs[0] if len(inputs) == 1 else None
    config = _dict(layer.get("config"))
    return _shape(config, "batch_shape") or _shape(config, "batch_input_shape")


def _shape(config: dict[str, Any], key: str) -> tuple[int | None, ...] | None:
    shape = config.get(key)
    if isinstance(shape, dict):  # {"class_name": "__tuple__", "items": […]} of TensorFlow 2.4
        shape = shape.get("items")
    if not isinstance(shape, list) or not all(size is None or isinstance(size, int) for size in shape):
        return None
    return tuple(shape)


def _is_kerases(module: Any) -> bool:
    return isinstance(module, str) and module.split(".")[0] in ("keras", "tf_keras")


def _name(node: dict[str, Any]) -> str:
    """The name of the class or function that a node stands for."""
    return str(node.get("config") if node.get("class_name") == "function" else node.get("class_name"))


def _unsafe(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a JSON object would run, and why that is unsafe."""
    class_name = node.get("class_name")
    # Keras 2 keeps the type of a function beside it: function_type, output_shape_type, …
    for key, value in node.items():
        if key.endswith("_type") and value == "lambda":
            yield str(class_name or key.removesuffix("_type")), _UNSAFE_CLASSES["__lambda__"]
    if class_name is None:
        return
    names = {str(class_name), _name(node), str(node.get("registered_name") or "")}  # Keras 2 takes any
    for each in sorted(name.rpartition(">")[2] for name in names):
        if each in _UNSAFE_CLASSES:
            yield each, _UNSAFE_CLASSES[each]
    if names & {"TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer"}:
        yield from _unsafe_operation(_name(node), _dict(node.get("config")))
    elif class_name == "function":
        yield from _unsafe_function(node)
    elif class_name not in _MARKERS:
        yield from _unsafe_class(node)


def _unsafe_operation(name: str, config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Of a layer of Keras 2 that stands for one function or operation of TensorFlow."""
    function, operation = str(config.get("function", "")), _dict(config.get("node_def")).get("op")
    pure = function.removeprefix("compat.v1.")
    if function and pure not in _PURE_FUNCTIONS and not pure.startswith(_PURE_MODULES):
        yield name, f"calls tf.{function}"
    if not function and operation not in _PURE_OPERATIONS:
        yield name, f"runs the operation {operation or 'that its node_def holds'}"


def _unsafe_function(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    name, module = _name(node), node.get("module")
    for each in (name, str(node.get("registered_name") or "")):
        if "." in each or (hasattr(builtins, each) and module in (None, "builtins")):
            yield name, f"calls Python's {each}"
    if _is_kerases(module) and not _FUNCTIONS.fullmatch(str(module)):
        yield name, f"calls {module}.{name}"


def _unsafe_class(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    name, module = _name(node), node.get("module")
    is_class = "A" <= name[:1] <= "Z" or ">" in name or name in _SMALL_LETTERS
    if not is_class or "." in name or "." in str(node.get("registered_name") or ""):
        yield name, "calls a function that the file names"
    elif module == "builtins" or (_is_kerases(module) and not _MODULE.fullmatch(str(module))):
        yield name, f"makes a {module}.{name}"


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _nodes(config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Iterate over the JSON objects at any depth, each with its layer's name.

    The order is the file's.
    """
    rest: list[tuple[str, Any]] = [("", config)]
    while rest:
        layer, value = rest.pop()
        if isinstance(value, str) and "class_name" in value:  # JSON within JSON
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                continue
        if isinstance(value, dict):
            if "class_name" in value:
                name = _dict(value.get("config")).get("name") or value.get("name")
                # Initialisers and policies have a config of their own, whose name is none of a layer.
                layer = name if isinstance(name, str) and _is_layer(value) else layer
            yield layer, value
            rest += [(layer, each) for each in reversed(value.values())]
        elif isinstance(value, list):
            rest += [(layer, each) for each in reversed(value)]


def _is_layer(node: dict[str, Any]) -> bool:
    return "inbound_nodes" in node or "build_config" in node or "trainable" in _dict(node.get("config"))
