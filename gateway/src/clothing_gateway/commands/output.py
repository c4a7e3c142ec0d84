"""What the command ``classify`` writes: for people one photo in full or a line for each, JSON lines, or CSV."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Protocol, TextIO

from clothing_gateway.client import Classification, Prediction, Problem

# Of several photos, more labels than these make long lines of what nobody asked for.
TOP_OF_SEVERAL = 3
_NAME_WIDTH = 40
_LABEL_WIDTH = 12


class ResultsError(Exception):
    """The results can't be written, or not added to what is there; the text says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One photo, with the answer for it or the reason that there is none."""

    photo: str
    answer: Classification | Exception
    number: int = 0  # among the photos, from 0

    @property
    def error(self) -> str:
        """The reason in words; empty where there is an answer."""
        if not isinstance(self.answer, Exception):
            return ""
        if isinstance(self.answer, OSError):
            return f"can't be read: {self.answer.strerror or self.answer}"
        return str(self.answer)


class Writer(Protocol):
    """Takes outcomes as they come."""

    def write(self, outcome: Outcome) -> None:
        """Write one."""

    def close(self) -> None:
        """Write what was held back, if anything was."""


def printable(text: str) -> str:
    """A text that does nothing to a terminal: the names of files may hold anything."""
    return "".join(character if character.isprintable() else "?" for character in text)


class Detail:
    """One photo for people: a line for each label, and the time of each step."""

    def __init__(self, stream: TextIO, top: int | None) -> None:
        self._stream = stream
        self._top = top

    def write(self, outcome: Outcome) -> None:
        """Write the answer; what failed, the command says."""
        if isinstance(outcome.answer, Exception):
            return
        answer, predictions = outcome.answer, outcome.answer.predictions[: self._top]
        width = max(len(prediction.label) for prediction in predictions)
        lines = [f"model {answer.model}, version {answer.version}"]
        lines += [f"  {one.label:<{width}}  {one.probability:7.2%}  score {one.score:8.3f}" for one in predictions]
        lines.append("  ".join(f"{step} {milliseconds:.1f} ms" for step, milliseconds in answer.milliseconds.items()))
        print(*map(printable, lines), sep="\n", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is held back."""


class Table:
    """Several photos for people: a line for each, in the order in which they were given."""

    def __init__(self, stream: TextIO, photos: Sequence[str], top: int | None) -> None:
        self._stream = stream
        self._top = top or TOP_OF_SEVERAL
        self._name_width = min(_NAME_WIDTH, max(map(len, photos), default=0))
        self._next = 0
        self._waiting: dict[int, Outcome] = {}

    def write(self, outcome: Outcome) -> None:
        """Write the line, when those before it are written."""
        self._waiting[outcome.number] = outcome
        while (found := self._waiting.pop(self._next, None)) is not None:
            self._line(found)
            self._next += 1

    def close(self) -> None:
        """Write what waited for others that never came."""
        for number in sorted(self._waiting):
            self._line(self._waiting[number])
        self._waiting.clear()

    def _line(self, outcome: Outcome) -> None:
        if isinstance(outcome.answer, Exception):
            return
        name = printable(outcome.photo)
        if len(name) > self._name_width:
            name = "…" + name[1 - self._name_width :]  # the end tells photos apart
        cells = [
            f"{printable(one.label):<{_LABEL_WIDTH}} {one.probability:7.2%}"
            for one in outcome.answer.predictions[: self._top]
        ]
        print(f"{name:<{self._name_width}}", *cells, sep="  ", file=self._stream, flush=True)


class JsonLines:
    """A JSON object for each photo, on a line of its own."""

    def __init__(self, stream: TextIO, top: int | None) -> None:
        self._stream = stream
        self._top = top

    def write(self, outcome: Outcome) -> None:
        """Write the line."""
        print(json.dumps({"photo": outcome.photo, **self._content(outcome)}), file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is held back."""

    def _content(self, outcome: Outcome) -> dict[str, object]:
        answer = outcome.answer
        if isinstance(answer, Exception):
            error: dict[str, object] = {"detail": outcome.error}
            if isinstance(answer, Problem):
                error = {"status": answer.status, "code": answer.code, "detail": answer.detail}
            request_id = getattr(answer, "request_id", "")
            return {"error": error | ({"request_id": request_id} if request_id else {})}
        return {
            "model": {"name": answer.model, "version": answer.version},
            "predictions": [
                {"label": one.label, "probability": one.probability, "score": one.score}
                for one in answer.predictions[: self._top]
            ],
            "milliseconds": {step: round(milliseconds, 2) for step, milliseconds in answer.milliseconds.items()},
            **({"request_id": answer.request_id} if answer.request_id else {}),
        }


class Csv:
    """A row for each photo, written when it comes: what is there stays, however the command ends."""

    def __init__(self, stream: TextIO, top: int | None, *, header: bool = True) -> None:
        self._stream = stream
        self._top = top or TOP_OF_SEVERAL
        self._rows = csv.writer(stream)
        if header:
            self._rows.writerow(columns(self._top))

    def write(self, outcome: Outcome) -> None:
        """Write the row."""
        answer = outcome.answer
        predictions: tuple[Prediction, ...] = ()
        model = version = ""
        if not isinstance(answer, Exception):
            predictions, model, version = answer.predictions[: self._top], answer.model, answer.version
        cells: list[str] = [outcome.photo]
        for one in predictions:
            cells += [one.label, f"{one.probability:.6g}", f"{one.score:.6g}"]
        cells += [""] * (3 * (self._top - len(predictions)))
        self._rows.writerow([*cells, model, version, outcome.error])
        self._stream.flush()

    def close(self) -> None:
        """Nothing is held back."""


def columns(top: int) -> list[str]:
    """The header of the CSV."""
    names = ["photo"]
    for rank in range(1, top + 1):
        suffix = "" if rank == 1 else f"_{rank}"
        names += [f"{name}{suffix}" for name in ("label", "probability", "score")]
    return [*names, "model", "version", "error"]


def open_csv(path: Path, top: int | None, *, resume: bool) -> tuple[TextIO, bool, set[str]]:
    """The file to write to, whether it has its header, and the photos that it has answers for.

    Without ``resume`` there must be no results in it: those of a long run are not for the next one to overwrite. With
    it, a row that was cut off when the machine went away is cut off wholly.
    """
    # Names of files that are no UTF-8 are written as they are.
    options = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    try:
        if not path.is_file() or path.stat().st_size == 0:
            return path.open("w", **options), False, set()  # type: ignore[call-overload]
        if not resume:
            raise ResultsError(f"{path} has results already: add to them with --resume, or name another file")
        content = path.read_bytes()
        if not content.startswith(",".join(columns(top or TOP_OF_SEVERAL)).encode() + b"\r\n"):
            raise ResultsError(f"{path} has other columns: is it from a run with another --top?")
        whole = content.rfind(b"\r\n") + 2
        if whole != len(content):
            os.truncate(path, whole)
        text = content[:whole].decode("utf-8", "surrogateescape")
        done = {row["photo"] for row in csv.DictReader(StringIO(text, newline="")) if not row["error"]}
        return path.open("a", **options), True, done  # type: ignore[call-overload]
    except OSError as error:
        raise ResultsError(f"can't write {path}: {error.strerror}") from None
