"""Options that several commands take."""

from __future__ import annotations

import json
import re
from pathlib import Path

from clothing_model.errors import ModelError


def read_labels(argument: str) -> tuple[str, ...]:
    """Read labels from a list, a file, or a folder of training photos.

    A folder's classes are in alphabetical order.
    """
    path = Path(argument)
    if path.is_dir():
        labels = sorted(child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
        if not labels:
            raise ModelError(f"--labels={argument}: the folder has no folder in it; it needs one per class")
    elif path.is_file():
        text = path.read_text("utf-8")
        try:
            labels = json.loads(text) if text.lstrip().startswith("[") else [line.strip() for line in text.splitlines()]
        except ValueError as error:
            raise ModelError(f"--labels={argument}: not a JSON list ({error})") from error
        labels = [str(label) for label in labels if str(label)]
    else:
        labels = [label.strip() for label in argument.split(",")]
    if not all(labels) or len(set(labels)) != len(labels):
        raise ModelError(f"--labels={argument}: labels must be there, and each only once: {', '.join(labels)}")
    return tuple(labels)


def image_size(argument: str | None) -> tuple[int, int] | None:
    """Parse N or WIDTHxHEIGHT into (height, width)."""
    if argument is None:
        return None
    match = re.fullmatch(r"([1-9][0-9]*)(?:x([1-9][0-9]*))?", argument)
    if not match:
        raise ModelError(f"--image-size={argument}: give one number, as 299, or WIDTHxHEIGHT")
    width = int(match[1])
    return (int(match[2]) if match[2] else width, width)
