"""Training of a network on labelled photos."""
