"""Errors that a user can fix: the message states cause and fix; no traceback."""

from __future__ import annotations


class ModelError(Exception):
    """A model, a photo folder or an option is invalid."""
