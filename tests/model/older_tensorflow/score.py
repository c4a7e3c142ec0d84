"""Scores SavedModels as TensorFlow Serving does: by session, from the tensor names of their signature.

Usage: score.py VERSIONS.json INPUTS.npz OUTPUTS.npz

VERSIONS.json: version folders by name. INPUTS.npz: a batch of photos by name. OUTPUTS.npz: float32 scores by name.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

versions, inputs, outputs = map(Path, sys.argv[1:])
photos = np.load(inputs, allow_pickle=True)
scores = {}
for name, folder in json.loads(versions.read_text()).items():
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], folder)
        signature = meta.signature_def["serving_default"]
        (given,) = signature.inputs.values()
        (wanted,) = signature.outputs.values()
        scores[name] = session.run(wanted.name, {given.name: photos[name]})
np.savez(outputs, tensorflow=tf.__version__, **scores)
