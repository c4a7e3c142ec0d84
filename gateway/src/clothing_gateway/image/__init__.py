"""A photo's file becomes the model's numbers."""
