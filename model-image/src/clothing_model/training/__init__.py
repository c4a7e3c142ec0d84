"""Training a compact network."""
