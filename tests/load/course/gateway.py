"""The course's gateway, rebuilt from its description, for comparison.

POST /predict {"url": "…"}: keras-image-helper fetches and prepares the photo, one gRPC Predict with all names in the
code and 20 s to answer, and the raw scores by label. Run by gunicorn with sync workers, its default.
"""

import os

import grpc
from flask import Flask, jsonify, request
from keras_image_helper import create_preprocessor
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

CLASSES = ["dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt"]

app = Flask("gateway")
channel = grpc.insecure_channel(os.getenv("TF_SERVING_HOST", "localhost:8500"))
stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
preprocessor = create_preprocessor("xception", target_size=(299, 299))


def tensor_of(data):
    """float32 into a TensorProto, by its bytes."""
    shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=n) for n in data.shape])
    return tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=shape, tensor_content=data.tobytes())


@app.route("/predict", methods=["POST"])
def predict():
    """The scores of the photo at a URL."""
    batch = preprocessor.from_url(request.get_json()["url"])
    message = predict_pb2.PredictRequest()
    message.model_spec.name = "clothing-model"
    message.model_spec.signature_name = "serving_default"
    message.inputs["input_8"].CopyFrom(tensor_of(batch))
    answer = stub.Predict(message, timeout=20.0)
    return jsonify(dict(zip(CLASSES, answer.outputs["dense_7"].float_val, strict=True)))
