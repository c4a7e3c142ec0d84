"""Keras files: reading them, half precision, preprocessing inside the graph."""
