"""Write a SavedModel whose inference takes longer the brighter its photo is.

    model-image/.venv/bin/python tests/e2e/slow_model.py DIRECTORY

Each of a photo's 256 levels of grey adds _ROUNDS small matrix products, each of which needs the one before: CPU time of
one core, about 3 ms a level on a core of 2026. Real operations, so that TensorFlow Serving runs it as well.
"""

from __future__ import annotations

import sys

import tensorflow as tf

SIZE = 32
LABELS = 10
_ROUNDS = 300
_WIDTH = 32  # too little to be shared between threads


class Slow(tf.Module):
    """Scores that don't depend on the photo, after a time that does."""

    @tf.function(input_signature=[tf.TensorSpec((None, SIZE, SIZE, 3), tf.float32, name="photos")])
    def serve(self, photos: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return float32 scores [photos, labels].

        ``photos`` is [photos, SIZE, SIZE, 3], float32 from -1 (black) to 1 (white).
        """
        level = tf.reduce_max(tf.round((tf.reduce_mean(photos, axis=(1, 2, 3)) + 1) * 127.5))
        weights = tf.random.stateless_normal((_WIDTH, _WIDTH), seed=(1, 2)) / _WIDTH**0.5
        _, last = tf.while_loop(
            lambda number, _: number < tf.cast(level, tf.int32) * _ROUNDS,
            lambda number, state: (number + 1, tf.tanh(state @ weights)),
            (tf.constant(0), tf.ones((_WIDTH, _WIDTH))),
            parallel_iterations=1,
        )
        scores = tf.range(LABELS, dtype=tf.float32) + 1e-9 * tf.reduce_sum(last)
        return {"scores": tf.repeat(scores[tf.newaxis], tf.shape(photos)[0], axis=0)}


if __name__ == "__main__":
    model = Slow()
    tf.saved_model.save(model, sys.argv[1], signatures={"serving_default": model.serve})
