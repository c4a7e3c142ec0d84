"""Lists and files of labels, as people have them.

One label a line, as text editors of every system write it (UTF-8 or UTF-16, with a byte order mark or without, any line
ends, blank lines); a JSON list; Keras's ``class_indices`` and its inverse; Teachable Machine's numbered lines.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

from clothing_contract.contract import ContractError

_NUMBERED = re.compile(r"(\d+)\s+(\S.*)")


def read_file(data: bytes) -> tuple[str, ...]:
    """Read the labels of a file; ContractError where they can't be told."""
    text = _text(data)
    if _is_json(text):
        return checked(_of_json(text))
    return checked(_without_numbers([line.strip() for line in text.splitlines() if line.strip()]))


def read_list(text: str) -> tuple[str, ...]:
    """Read the labels of an option or a setting: a,b,c or JSON; ContractError."""
    return checked(_of_json(text) if _is_json(text) else [label.strip() for label in text.split(",")])


def checked(labels: list[str]) -> tuple[str, ...]:
    """The labels; ContractError where one is empty or named twice, or none is there."""
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice or not labels or not all(labels):
        raise ContractError(f"labels must be there, and each only once: {', '.join(twice or labels) or 'none'}")
    return tuple(labels)


def _text(data: bytes) -> str:
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise ContractError("the file is neither UTF-8 nor UTF-16: save it as UTF-8") from None


def _is_json(text: str) -> bool:
    return text.lstrip()[:1] in ("[", "{")


def _of_json(text: str) -> list[str]:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"the labels begin like JSON and are none ({error})") from None
    if isinstance(found, list) and all(isinstance(label, str) for label in found):
        return [label.strip() for label in found]
    if isinstance(found, dict) and found:
        if all(isinstance(at, int) for at in found.values()):  # {"bees": 0, "wasps": 1}
            named = {at: label for label, at in found.items()}
        elif all(at.isascii() and at.isdigit() and isinstance(label, str) for at, label in found.items()):
            named = {int(at): label for at, label in found.items()}
        else:
            named = {}
        if sorted(named) == list(range(len(found))):
            return [named[at].strip() for at in range(len(found))]
    raise ContractError('JSON labels are a list, {"bees": 0, "wasps": 1} or {"0": "bees"}, with numbers from 0 up')


def _without_numbers(lines: list[str]) -> list[str]:
    """Lines without their own numbers, "0 Class 1", where each line has its own."""
    matches = [_NUMBERED.fullmatch(line) for line in lines]
    if len(lines) > 1 and all(match and int(match[1]) == at for at, match in enumerate(matches)):
        return [match[2] for match in matches if match]
    return lines
