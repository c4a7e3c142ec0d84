"""From a Keras model to a versioned SavedModel, and a portable server that speaks TensorFlow Serving's protocol."""

__version__ = "0.1.0"
