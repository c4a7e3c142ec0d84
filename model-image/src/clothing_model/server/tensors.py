"""Conversion of TensorProto to NumPy and back, and of both to JSON.

The common case, numbers in tensor_content, is not copied.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework import tensor_pb2

from clothing_model.server.errors import RequestError, invalid

Array = NDArray[Any]

# TensorProto's field for each dtype, in Tensor::AsProtoField's terms.
_FIELDS = {
    tf.float32: "float_val", tf.float64: "double_val", tf.int32: "int_val", tf.int16: "int_val", tf.int8: "int_val",
    tf.uint8: "int_val", tf.uint16: "int_val", tf.int64: "int64_val", tf.bool: "bool_val", tf.uint32: "uint32_val",
    tf.uint64: "uint64_val",
}  # fmt: skip


def from_proto(alias: str, tensor: Any, expected: tf.DType, position: int) -> Array:
    """The array in a request, of the signature's dtype."""
    try:
        dtype = tf.as_dtype(tensor.dtype)
    except TypeError as error:
        raise invalid(f"tensor parsing error: {alias}") from error
    if dtype != expected:
        raise invalid(f"Expects arg[{position}] to be {expected.name} but {dtype.name} is provided")
    try:
        if tensor.tensor_content and dtype != tf.string:
            shape = [dimension.size for dimension in tensor.tensor_shape.dim]
            if len(tensor.tensor_content) != math.prod(shape) * dtype.size:
                raise ValueError("its content does not fill its shape")
            return np.frombuffer(tensor.tensor_content, dtype.as_numpy_dtype).reshape(shape)
        return np.asarray(tf.make_ndarray(tensor))
    except (ValueError, TypeError) as error:
        raise invalid(f"tensor parsing error: {alias}") from error


def into_proto(array: Array, target: Any, as_content: bool) -> None:
    """Fill a response's TensorProto, by typed field or as bytes.

    The typed field is TensorFlow Serving's default.
    """
    dtype = tf.as_dtype(array.dtype)
    field = _FIELDS.get(dtype)
    if field is None or (as_content and dtype != tf.string):
        target.CopyFrom(_content_proto(array, dtype))
        return
    target.dtype = dtype.as_datatype_enum
    for size in array.shape:
        target.tensor_shape.dim.add(size=size)
    getattr(target, field).extend(array.ravel().tolist())


def _content_proto(array: Array, dtype: tf.DType) -> Any:
    if dtype == tf.string:
        return tf.make_tensor_proto(array)
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, tensor_content=np.ascontiguousarray(array).tobytes())
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def from_json(name: str, value: Any, dtype: tf.DType) -> Array:
    """Parse a tensor from nested lists; strings may be {"b64": …}."""
    if dtype == tf.string:
        return np.array(_strings(value), dtype=object)
    try:
        array = np.array(value)
    except ValueError as error:
        raise invalid(f"Failed to process input {name}: its lists are not all of one length") from error
    kinds = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}
    wanted = np.dtype(dtype.as_numpy_dtype)
    if array.size and array.dtype.kind not in kinds.get(wanted.kind, ""):
        raise invalid(f"JSON Value: {str(value)[:256]} is not of expected type: {dtype.name}")
    return array.astype(wanted)


def _strings(value: Any) -> Any:
    if isinstance(value, list):
        return [_strings(each) for each in value]
    if isinstance(value, str):
        return value.encode()
    if is_base64(value):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise invalid("Unable to base64 decode") from error
    raise invalid(f"JSON Value: {str(value)[:256]} is not of expected type: string")


def is_base64(value: Any) -> bool:
    """Whether a JSON value is ``{"b64": "…"}``."""
    return isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str)


def to_json(name: str, array: Array) -> Any:
    """Convert an array to nested lists for JSON.

    float32 keeps the shortest digits that restore it, not its double's seventeen.
    """
    if array.dtype == object:
        as_bytes = name.endswith("_bytes")
        return _map(array.tolist(), lambda text: _text(text, as_bytes))
    if array.dtype == np.float32:
        return _map(array.astype(str).tolist(), float)
    if array.dtype.kind in "iubf" and array.dtype.itemsize <= 8:
        return array.tolist()
    raise RequestError(invalid("").code, f"Failed to write JSON value for tensor type: {array.dtype}")


def _text(value: bytes, as_bytes: bool) -> Any:
    return {"b64": base64.b64encode(value).decode()} if as_bytes else value.decode("utf-8", "replace")


def _map(value: Any, function: Any) -> Any:
    return [_map(each, function) for each in value] if isinstance(value, list) else function(value)
