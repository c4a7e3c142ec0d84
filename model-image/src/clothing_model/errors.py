"""The errors a user can mend: each names its cause and the way out, and is printed without a traceback."""

from __future__ import annotations


class ModelError(Exception):
    """Something about a model, a photo folder or an option is not as it must be."""
