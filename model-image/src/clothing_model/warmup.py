"""Warm-up requests: what a server runs before it opens its ports, so that the first photo is not the slow one."""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MAX_RECORDS = 1000  # TensorFlow Serving refuses more


def write(
    path: Path, model: str, input_name: str, dtype: int, shape: Sequence[int], batch_sizes: Sequence[int]
) -> None:
    """One Predict request per batch size, of zeros. A tensor with one value stands for one filled with it, so the file
    is a few hundred bytes instead of megabytes."""
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2
    from tensorflow_serving.apis import prediction_log_pb2

    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for batch in batch_sizes:
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = model
            request.model_spec.signature_name = "serving_default"
            tensor = tensor_pb2.TensorProto(dtype=dtype, float_val=[0.0])
            for size in (batch, *shape):
                tensor.tensor_shape.dim.add(size=size)
            request.inputs[input_name].CopyFrom(tensor)
            writer.write(log.SerializeToString())


def read(path: Path) -> Iterator[Any]:
    """The PredictionLog messages of a TFRecord file: length, its checksum, the message, its checksum."""
    from tensorflow_serving.apis import prediction_log_pb2

    with path.open("rb") as file:
        while header := file.read(12):
            if len(header) < 12:
                raise ValueError(f"{path} ends in the middle of a record")
            (length,) = struct.unpack_from("<Q", header)
            record = file.read(length + 4)
            if len(record) < length + 4:
                raise ValueError(f"{path} ends in the middle of a record")
            yield prediction_log_pb2.PredictionLog.FromString(record[:length])
