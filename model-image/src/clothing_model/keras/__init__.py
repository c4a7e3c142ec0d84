"""Keras files: loading, half precision, preprocessing inside the graph."""
