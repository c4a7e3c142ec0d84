"""Errors that a user can fix: the message states cause and fix; no traceback."""

from __future__ import annotations


class ModelError(Exception):
    """Something about a model, a photo folder or an option is not as it must be."""
