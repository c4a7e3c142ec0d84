"""The model server: what it serves, how it is reached, Predict."""
