"""Steps of each peer for a photo, with the usual libraries at their best.

The bytes come from the request or from a URL (urllib3 with a pool of connections); Pillow decodes and resizes them as
the training did; numpy normalises; one gRPC Predict; the scores by label.
"""

import io
import os

import grpc
import numpy as np
import urllib3
from PIL import Image
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

LABELS = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt")
SIZE = (299, 299)


class Steps:
    """One pool of connections and one channel for all photos of a process."""

    def __init__(self):
        self._pool = urllib3.PoolManager(maxsize=64, retries=False)
        self._predict = prediction_service_pb2_grpc.PredictionServiceStub(
            grpc.insecure_channel(os.environ["TF_SERVING_HOST"])
        ).Predict

    def fetch(self, url):
        """The bytes at a URL."""
        answer = self._pool.request("GET", url, timeout=10)
        if answer.status != 200:
            raise OSError(f"{url} answered {answer.status}")
        return answer.data

    def classify(self, data):
        """The scores of a photo's bytes."""
        return self.classify_image(Image.open(io.BytesIO(data)))

    def classify_image(self, image):
        """The scores of a photo that is open."""
        if image.mode != "RGB":
            image = image.convert("RGB")
        batch = np.asarray(image.resize(SIZE, Image.Resampling.NEAREST), np.float32)
        batch /= 127.5
        batch -= 1.0
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "clothing-model"
        request.model_spec.signature_name = "serving_default"
        tensor = request.inputs["input_8"]
        tensor.dtype = types_pb2.DT_FLOAT
        tensor.tensor_content = batch.tobytes()
        for size in (1, *batch.shape):
            tensor.tensor_shape.dim.add().size = size
        scores = self._predict(request, timeout=20).outputs["dense_7"].float_val
        return dict(zip(LABELS, scores, strict=True))
