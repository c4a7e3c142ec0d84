"""Detection and loading of Keras files (Keras 2 and 3) and SavedModels.

TensorFlow is imported only to load.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clothing_model import savedmodel
from clothing_model.errors import ModelError
from clothing_model.keras import config as keras_config

SAVED_MODEL, HDF5, KERAS_ZIP = "SavedModel", "HDF5", "Keras zip"
SAVED_MODEL_PARTS = ("saved_model.pb", "variables", "assets", "assets.extra", "fingerprint.pb", "keras_metadata.pb")
_HDF5_START = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Source:
    """The model file or folder that a user passed."""

    path: Path
    kind: str
    keras_version: str | None = None  # None for a SavedModel
    trusted: bool = False  # whether code in a Keras file may run
    output_name: str | None = None  # which output of a SavedModel that has several

    @property
    def keras_2(self) -> bool:
        """Whether Keras 2 saved it."""
        return self.keras_version is not None and int(self.keras_version.split(".")[0]) < 3

    def __str__(self) -> str:
        made_by = f"Keras {self.keras_version}" if self.keras_version else "TensorFlow"
        return f"{self.path} ({self.kind} of {made_by}, {_size(self.path) / 1e6:.1f} MB)"


def identify(path: Path) -> Source:
    """Detect a model's format; ModelError, with the fix, where it is no model."""
    if not path.exists():
        raise ModelError(f"{path} does not exist")
    if path.is_dir():
        return Source(savedmodel.locate(path), SAVED_MODEL)
    if savedmodel.is_lfs_pointer(path):
        raise ModelError(savedmodel.lfs_message(path))
    if path.name == "saved_model.pb":
        return Source(path.parent, SAVED_MODEL)
    with path.open("rb") as file:
        start = file.read(len(_HDF5_START))
    if start == _HDF5_START:
        return Source(path, HDF5, _hdf5_version(path))
    if zipfile.is_zipfile(path):
        return Source(path, KERAS_ZIP, _zip_version(path))
    if not start:
        raise ModelError(f"{path} is empty: copy or download it again")
    if start.lstrip().startswith((b"<", b"{")):
        raise ModelError(
            f"{path} is text, not a model: a download that answered with a page or an error? Fetch the file itself"
        )
    hint = {
        ".h5": "It is not HDF5, or was cut short: copy or download it again",
        ".keras": "It is not a zip, or was cut short: copy or download it again",
        ".pb": "A frozen graph can't be converted: save the model with tf.saved_model.save or model.export",
        ".tflite": "TensorFlow Lite can't be turned back: convert the Keras model that it was made from",
        ".onnx": "Convert it to a SavedModel with onnx2tf first, then give that folder",
        ".pt": "Export the PyTorch model to ONNX and that to a SavedModel, then give that folder",
        ".pth": "Export the PyTorch model to ONNX and that to a SavedModel, then give that folder",
    }.get(path.suffix.lower(), "Save the model with model.save('model.keras') and give that file")
    raise ModelError(f"{path} is none of .h5, .keras and SavedModel. {hint}")


def sha256(path: Path) -> str:
    """SHA-256 of a file or of a SavedModel's folder.

    A folder's is of the list of its files' digests, as `sha256sum` prints them.
    """
    if path.is_dir():
        files = sorted(file for part in SAVED_MODEL_PARTS for file in _files(path / part))
        lines = "".join(f"{sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
        return hashlib.sha256(lines.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def _hdf5_version(path: Path) -> str:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            version, config = file.attrs.get("keras_version"), file.attrs.get("model_config")
    except OSError as error:
        raise ModelError(
            f"{path} can't be read as HDF5 ({error}): it was cut short? Copy or download it again"
        ) from error
    if config is None:
        raise ModelError(
            f"{path} holds weights without the network (save_weights): build the network in Python, load_weights "
            "them, and save the whole with model.save('model.keras')"
        )
    text = version.decode() if isinstance(version, bytes) else str(version or "2.0.0")
    return text if re.match(r"\d+\.", text) else "2.0.0"  # files older than the attribute are of Keras 2


def _zip_version(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        if {"metadata.json", "config.json"} <= names:
            try:
                return str(json.loads(archive.read("metadata.json"))["keras_version"])
            except (KeyError, ValueError, zipfile.BadZipFile) as error:
                raise ModelError(f"{path} is broken ({error!r} in metadata.json): save or download it again") from error
    if any(name.endswith("saved_model.pb") for name in names):
        raise ModelError(f"{path} is a zipped SavedModel: unzip it and give the folder that holds saved_model.pb")
    raise ModelError(
        f"{path} is a zip, but not one that Keras saved (no metadata.json in it): "
        "unzip it and give the model inside, or save the model with model.save('model.keras')"
    )


@dataclass(frozen=True)
class KerasModel:
    """A loaded model, independent of its format: Keras 2, Keras 3 or SavedModel."""

    library: str
    call: Callable[[Any], Any]
    variables: list[Any]  # tf.Variable, or what holds them
    input_name: str
    output_name: str
    input_shape: tuple[int | None, ...]
    output_shape: tuple[int | None, ...]


def load(source: Source) -> KerasModel:
    """Load a Keras 2 or Keras 3 model, or a SavedModel.

    A Keras file with code in it is loaded only where the source is ``trusted``, which runs that code.

    Keras 2 files are loaded by tf-keras: Keras 3 refuses, among others, the course's Xception, whose
    SeparableConv2D layers were saved with a `groups` setting.

    Raises:
        ModelError: it can't be loaded, or has not one input and one output.

    """
    if source.kind == SAVED_MODEL:
        return _load_saved_model(source)
    return _load_keras_2(source) if source.keras_2 else _load_keras_3(source)


def _load_keras_2(source: Source) -> KerasModel:
    import tf_keras
    from tf_keras.src.saving.serialization_lib import SafeModeScope

    def load_model() -> Any:
        # The scope too: of an .h5 load_model takes safe_mode, and takes no notice of it.
        with SafeModeScope(not source.trusted):
            return tf_keras.models.load_model(source.path, compile=False, safe_mode=not source.trusted)

    # compile=False: the optimizer and the loss aren't needed, and the names of old ones are unknown today.
    model = _guarded(source, load_model)
    library = f"tf-keras {tf_keras.__version__}"
    variables = list(model.variables)
    return _described(source, model, library, variables, inputs=model.input_names, outputs=model.output_names)


def _load_keras_3(source: Source) -> KerasModel:
    import keras

    model = load_keras_3(source)
    inputs = [tensor.name for tensor in model.inputs]
    outputs = list(getattr(model, "output_names", ())) or [model.layers[-1].name]  # a Sequential has no output_names
    variables = [variable.value for variable in model.variables]
    return _described(source, model, f"Keras {keras.__version__}", variables, inputs=inputs, outputs=outputs)


def load_keras_3(source: Source) -> Any:
    """Load a Keras 3 file as a Keras model."""
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ModelError(f"Keras runs on {keras.backend.backend()} here: set KERAS_BACKEND=tensorflow and run again")
    return _guarded(source, lambda: keras.models.load_model(source.path, compile=False, safe_mode=not source.trusted))


_FLOATS = ("float32", "float16", "bfloat16")  # mixed precision; what is written takes float32


def _load_saved_model(source: Source) -> KerasModel:
    """Load a SavedModel's photo signature as a function.

    savedmodel.reader has checked that the signature is there.
    """
    import tensorflow as tf

    model = tf.saved_model.load(str(source.path))
    signature = model.signatures[savedmodel.DEFAULT_SIGNATURE]
    ((input_name, photo),) = signature.structured_input_signature[1].items()
    outputs = signature.structured_outputs
    output_name = scores_name(source, list(outputs))
    if photo.dtype not in _FLOATS or photo.shape.rank is None or photo.shape[0] is not None:
        raise ModelError(
            f"{source.path} takes {photo.dtype.name} {photo.shape}: another input or other names can be given only to "
            "a model that takes floating-point photos in batches of any size. Convert the Keras file that it was made "
            "from"
        )
    scores = outputs[output_name]
    return KerasModel(
        library=f"TensorFlow {tf.__version__}",
        call=lambda photos: signature(**{input_name: tf.cast(photos, photo.dtype)})[output_name],
        variables=[model],
        input_name=_identifier(input_name),
        output_name=_identifier(output_name),
        input_shape=tuple(photo.shape),
        output_shape=tuple(scores.shape),
    )


def scores_name(source: Source, outputs: list[str]) -> str:
    """Name of the output to keep.

    It is the only one, the requested one, or the only one that can hold scores.
    """
    if len(outputs) == 1 or source.output_name in outputs:
        return str(source.output_name if source.output_name in outputs else outputs[0])
    possible = savedmodel.score_outputs(savedmodel.read(source.path))
    if len(possible) == 1:
        return possible[0]
    raise ModelError(
        f"{source.path} has {len(outputs)} outputs ({', '.join(outputs)}): a photo classifier has one. "
        "Choose the one that gives the scores with --output-name NAME"
    )


def _guarded(source: Source, load_model: Callable[[], Any]) -> Any:
    config = keras_config.read(source.path)
    if not source.trusted:
        keras_config.refuse(source.path, config)
    try:
        model = load_model()
    except Exception as error:
        raise ModelError(
            f"{source.path} can't be loaded: {_cause(error, config)}\n  {keras_config.OWN_LAYERS}"
        ) from error
    if not getattr(model, "built", False) or not getattr(model, "inputs", None):
        raise ModelError(
            f"{source.path} was saved before it knew the shape of its input: call it once, or start it with an Input, "
            "and save it again"
        )
    return model


# How tf-keras and Keras 3 name what they don't know.
_UNKNOWN = re.compile(
    r"(?:Unknown|Could not locate|Could not interpret) [\w ]+(?:'(?P<quoted>[\w>]+)'|: '?(?P<bare>[\w>]+))"
)


def _cause(error: Exception, config: dict[str, Any]) -> str:
    """First line of Keras's error, or the unknown class or function and its layers.

    Keras names an unknown one further below.
    """
    unknown = _UNKNOWN.search(str(error))
    name = (unknown["quoted"] or unknown["bare"]).rpartition(">")[2] if unknown else "function"
    if name == "function":  # which, stands in the config that it quotes
        named = [each for each in keras_config.functions(config) if repr(each) in str(error)]
        name = named[0] if named else ""
    if name:
        layers = [layer for layer in keras_config.layers_of(config, name) if layer]
        where = f"layer {', '.join(layers[:5])}: " if layers else ""
        return f"{where}{name} is unknown to Keras"
    first = (str(error).strip().splitlines() or [repr(error)])[0]
    return f"{type(error).__name__}: {first[:500]}"


def require_one_of_each(source: Source, inputs: list[str], outputs: list[str]) -> None:
    """Refuse a model that has not one input and one output."""
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelError(
            f"{source.path} has {len(inputs)} inputs ({', '.join(inputs)}) and {len(outputs)} outputs "
            f"({', '.join(outputs)}): a photo classifier has one of each. "
            "Save the part that classifies as a model of its own"
        )


def _described(
    source: Source, model: Any, library: str, variables: list[Any], *, inputs: list[str], outputs: list[str]
) -> KerasModel:
    require_one_of_each(source, inputs, outputs)
    return KerasModel(
        library=library,
        call=lambda photos: model(photos, training=False),
        variables=variables,
        input_name=_identifier(inputs[0]),
        output_name=_identifier(outputs[0]),
        input_shape=tuple(model.inputs[0].shape),
        output_shape=tuple(model.outputs[0].shape),
    )


def _identifier(name: str) -> str:
    """A layer's name as a Python identifier.

    TensorFlow names a signature's input after the function's argument.
    """
    cleaned = re.sub(r"[^A-Za-z0-9_]", "_", name.split("/", maxsplit=1)[0].split(":", maxsplit=1)[0])
    return cleaned if re.match(r"[A-Za-z]", cleaned) else f"input_{cleaned}"
