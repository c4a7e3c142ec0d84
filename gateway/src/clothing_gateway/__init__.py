"""HTTP gateway for an image classifier on TensorFlow Serving: URL or upload."""

__version__ = "0.1.0"
