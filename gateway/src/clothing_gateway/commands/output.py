"""Output of ``classify``: one photo in detail, a table, JSON lines, or CSV."""

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

# For several photos, more labels make lines too long to read.
TOP_OF_SEVERAL = 3
_NAME_WIDTH = 40
_LABEL_WIDTH = 12


class ResultsError(Exception):
    """The results can't be written, or not appended to the file's."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One photo, with its classification or its error."""

    photo: str
    answer: Classification | Exception
    number: int = 0  # among the photos, from 0

    @property
    def error(self) -> str:
        """The error's text; empty where the photo was classified."""
        if not isinstance(self.answer, Exception):
            return ""
        if isinstance(self.answer, OSError):
            return f"can't be read: {self.answer.strerror or self.answer}"
        return str(self.answer)


class Writer(Protocol):
    """Writes outcomes in order of completion."""

    def write(self, outcome: Outcome) -> None:
        """Write an outcome."""

    def close(self) -> None:
        """Write buffered outcomes."""


def printable(text: str) -> str:
    """The text without control characters, which file names may hold."""
    return "".join(character if character.isprintable() else "?" for character in text)


class Detail:
    """One photo in detail: a line per label, and the time of each stage."""

    def __init__(self, stream: TextIO, top: int | None) -> None:
        self._stream = stream
        self._top = top

    def write(self, outcome: Outcome) -> None:
        """Write the classification; errors are written by the command."""
        if isinstance(outcome.answer, Exception):
            return
        answer, predictions = outcome.answer, outcome.answer.predictions[: self._top]
        width = max(len(prediction.label) for prediction in predictions)
        lines = [f"model {answer.model}, version {answer.version}"]
        lines += [f"  {one.label:<{width}}  {one.probability:7.2%}  score {one.score:8.3f}" for one in predictions]
        if answer.labels is not None:
            lines.append(f"labels: {', '.join(answer.labels) or 'none'}")
        lines.append("  ".join(f"{step} {milliseconds:.1f} ms" for step, milliseconds in answer.milliseconds.items()))
        print(*map(printable, lines), sep="\n", file=self._stream, flush=True)

    def close(self) -> None:
        """Do nothing: nothing is buffered."""


class Table:
    """Several photos as a table: a line per photo, in the arguments' order."""

    def __init__(self, stream: TextIO, photos: Sequence[str], top: int | None) -> None:
        self._stream = stream
        self._top = top or TOP_OF_SEVERAL
        self._name_width = min(_NAME_WIDTH, max(map(len, photos), default=0))
        self._next = 0
        self._waiting: dict[int, Outcome] = {}

    def write(self, outcome: Outcome) -> None:
        """Write the line once those before it are written."""
        self._waiting[outcome.number] = outcome
        while (found := self._waiting.pop(self._next, None)) is not None:
            self._line(found)
            self._next += 1

    def close(self) -> None:
        """Write lines that waited for photos that were not classified."""
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
    """JSON lines: an object per photo."""

    def __init__(self, stream: TextIO, top: int | None) -> None:
        self._stream = stream
        self._top = top

    def write(self, outcome: Outcome) -> None:
        """Write the line."""
        print(json.dumps({"photo": outcome.photo, **self._content(outcome)}), file=self._stream, flush=True)

    def close(self) -> None:
        """Do nothing: nothing is buffered."""

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
            **({} if answer.labels is None else {"labels": list(answer.labels)}),
            "milliseconds": {step: round(milliseconds, 2) for step, milliseconds in answer.milliseconds.items()},
            **({"request_id": answer.request_id} if answer.request_id else {}),
        }


class Csv:
    """CSV: a row per photo, written on completion, so that an interrupt loses none."""

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
        """Do nothing: nothing is buffered."""


def columns(top: int) -> list[str]:
    """The header of the CSV."""
    names = ["photo"]
    for rank in range(1, top + 1):
        suffix = "" if rank == 1 else f"_{rank}"
        names += [f"{name}{suffix}" for name in ("label", "probability", "score")]
    return [*names, "model", "version", "error"]


def open_csv(path: Path, top: int | None, *, resume: bool) -> tuple[TextIO, bool, set[str]]:
    """Open the file; whether it has its header, and which photos it has results for.

    Without ``resume`` the file must hold no results: a run does not overwrite those of another. With it, a last row
    that is incomplete, as after a crash, is removed.
    """
    # File names that are not UTF-8 are written unchanged.
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
