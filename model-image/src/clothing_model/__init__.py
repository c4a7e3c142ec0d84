"""Keras models to versioned SavedModels, and a portable model server.

The server speaks TensorFlow Serving's protocol.
"""

__version__ = "0.1.0"
