"""Lists and files of labels, as people have them.

One label a line, as text editors of every system write it (UTF-8, or UTF-16 with a byte order mark, any line ends,
blank lines, quoted, as YAML's list); numbered lines, as Teachable Machine's, or a CSV's with a header; a JSON list;
Keras's ``class_indices`` and its inverse, alone or as ``id2label`` of a Hugging Face configuration.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

from clothing_contract.contract import ContractError

_NUMBERED = re.compile(r"(\d+)(?:\s*[,;:\t]|\s)\s*(\S.*)")
_NUMBER_LAST = re.compile(r"(\S.*?)\s*[,;:\t]\s*(\d+)")
_LISTED = re.compile(r"-\s+(\S.*)")
_QUOTED = re.compile(r"""(["'])(.+)\1""")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# What is saved in place of the file meant: by Git LFS, and by browsers.
_OTHER_FILES = (("version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"), ("<", "a page or XML"))


def read_file(data: bytes) -> tuple[str, ...]:
    """Read the labels of a file; ContractError where they can't be told."""
    text = _text(data)
    for start, words in _OTHER_FILES:
        if text.lstrip().startswith(start):
            raise ContractError(f"the file holds no labels, but is {words}")
    if _is_json(text):
        return checked(_of_json(text))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return checked(_each(_QUOTED, 2, _without_numbers(_each(_LISTED, 1, lines))))


def read_list(text: str) -> tuple[str, ...]:
    """Read the labels of an option or a setting: a,b,c or JSON; ContractError."""
    return checked(_of_json(text) if _is_json(text) else [label.strip() for label in text.split(",")])


def checked(labels: list[str]) -> tuple[str, ...]:
    """The labels; ContractError where one is empty or named twice, or none is there."""
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice or not labels or not all(labels):
        raise ContractError(f"labels must be there, and each only once: {', '.join(twice or labels) or 'none'}")
    if any(_CONTROL.search(label) for label in labels):
        raise ContractError("the labels hold control characters: save them as UTF-8 text")
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
    if isinstance(found, dict) and isinstance(found.get("id2label"), dict):
        found = found["id2label"]
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
    """Lines without their own numbers, "0 Class 1", where each line has its own.

    The first may be a CSV's header.
    """
    for rows in (lines, lines[1:] if lines and _is_header(lines[0]) else []):
        for pattern, label, number in ((_NUMBERED, 2, 1), (_NUMBER_LAST, 1, 2)):
            matches = [match for line in rows if (match := pattern.fullmatch(line))]
            names = [match[label] for match in matches]
            is_numbered = [int(match[number]) for match in matches] == list(range(len(rows)))
            if len(rows) > 1 and is_numbered and len(set(names)) == len(names):
                return names
    return lines


def _is_header(line: str) -> bool:
    return any(separator in line for separator in ",;\t")


def _each(pattern: re.Pattern[str], group: int, lines: list[str]) -> list[str]:
    """A part of each line, where all lines have it."""
    matches = [match for line in lines if (match := pattern.fullmatch(line))]
    return [match[group] for match in matches] if len(matches) == len(lines) else lines
