"""An HTTP gateway that takes a photo, by URL or upload, and asks TensorFlow Serving what is on it."""

__version__ = "0.1.0"
