"""Warm-up requests, which a server runs before it opens its ports."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MAX_RECORDS = 1000  # TensorFlow Serving rejects more
DTYPES = ("DT_FLOAT", "DT_UINT8", "DT_STRING")  # what can be written


def write(
    path: Path, model: str, input_name: str, *, dtype: str, shape: Sequence[int], batch_sizes: Sequence[int]
) -> None:
    """Write one Predict request per batch size.

    Photos are black, or grey JPEG files where the input is files.

    A tensor with one value stands for one filled with it, so the file is a few hundred bytes instead of megabytes.

    Args:
        path: the file to write.
        model: the model's name.
        input_name: the input of ``serving_default``.
        dtype: the input's, one of ``DTYPES``.
        shape: of one photo, without the batch.
        batch_sizes: the photos of each request.

    """
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2, types_pb2
    from tensorflow_serving.apis import prediction_log_pb2

    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for batch in batch_sizes:
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = model
            request.model_spec.signature_name = "serving_default"
            tensor = tensor_pb2.TensorProto(dtype=types_pb2.DataType.Value(dtype))
            if dtype == "DT_STRING":
                tensor.string_val.extend(
                    [tf.io.encode_jpeg(tf.fill((64, 64, 3), tf.constant(127, tf.uint8))).numpy()] * batch
                )
            elif dtype == "DT_FLOAT":
                tensor.float_val.append(0)
            else:
                tensor.int_val.append(0)
            for size in (batch, *shape):
                tensor.tensor_shape.dim.add(size=size)
            request.inputs[input_name].CopyFrom(tensor)
            writer.write(log.SerializeToString())


def records(path: Path) -> Iterator[bytes]:
    """Iterate over a TFRecord file's records, without TensorFlow.

    A record is the length, its checksum, the message, its checksum.

    The lengths' checksums are compared, which tells a file of another kind; the messages', where that is quick.
    """
    with path.open("rb") as file:
        while header := file.read(12):
            if len(header) < 12:
                raise ValueError(f"{path} ends in the middle of a record")
            length, checksum = struct.unpack("<QI", header)
            if _masked_crc32c(header[:8]) != checksum:
                raise ValueError(f"{path} is not a TFRecord file, or is broken: a record's length has a wrong checksum")
            record = file.read(length + 4)
            if len(record) < length + 4:
                raise ValueError(f"{path} ends in the middle of a record")
            message = record[:length]
            if length <= _QUICK and _masked_crc32c(message) != struct.unpack_from("<I", record, length)[0]:
                raise ValueError(f"{path} is broken: a record has a wrong checksum")
            yield message


def read(path: Path) -> Iterator[Any]:
    """The PredictionLog messages of a file of warm-up requests."""
    from tensorflow_serving.apis import prediction_log_pb2

    for record in records(path):
        yield prediction_log_pb2.PredictionLog.FromString(record)


def _crc32c_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC32C = _crc32c_table()
_QUICK = 1 << 16  # bytes; Python checks some 10 MB a second


def _masked_crc32c(data: bytes) -> int:
    """TFRecord's masked checksum: CRC-32C, rotated.

    The mask keeps a checksum of data that contains checksums sound.
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
