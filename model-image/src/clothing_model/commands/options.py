"""Options that several commands take."""

from __future__ import annotations

import re
from pathlib import Path

from clothing_contract import ContractError
from clothing_contract import labels as label_files
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
        try:
            return label_files.read_file(path.read_bytes())
        except ContractError as error:
            raise ModelError(f"--labels={argument}: {error}") from error
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
