"""What TensorFlow itself gives for photos, in one process, with keras-image-helper's preprocessing.

    model-image/.venv/bin/python tests/reference_scores.py SAVED_MODEL PHOTO…  →  {"PHOTO": [score, …], …}

The yardstick for what the gateway and the model server answer together; nothing of either takes part in it.
"""

import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
from keras_image_helper import create_preprocessor


def main(saved_model: str, *paths: str) -> None:
    signature = tf.saved_model.load(saved_model).signatures["serving_default"]
    ((name, spec),) = signature.structured_input_signature[1].items()
    height, width = spec.shape[1:3]
    preprocessor = create_preprocessor("xception", target_size=(width, height))
    scores = {}
    for path in paths:
        (output,) = signature(**{name: tf.constant(preprocessor.from_path(path))}).values()
        scores[path] = [float(score) for score in output[0]]
    json.dump(scores, sys.stdout)


main(*sys.argv[1:])
