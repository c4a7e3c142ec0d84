"""The command ``classify``: classifies photos concurrently, by gateway or server."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from clothing_gateway.client import Classification, Client, ClientError, Prediction, Problem
from clothing_gateway.commands.output import Csv, Detail, JsonLines, Outcome, Table, Writer, open_csv, printable
from clothing_gateway.commands.progress import Progress
from clothing_gateway.settings import Settings

# File names of the formats that the gateway decodes (image.decode). Windows' browsers save JPEGs as .jfif.
SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp"})
FORMATS = "JPEG, PNG, WebP, GIF or BMP"
_KINDS_SHOWN = 8  # of skipped files
# Photos in flight: keeps a gateway of one or two cores busy, and leaves most of its 32 in-flight slots to others.
PARALLEL = 4
# Consecutive failures, and at least one for each photo in flight, that are not the photos' own: the next ten thousand
# would fail as well.
_HOPELESS_IN_A_ROW = 4
_NOTE_SECONDS = 5.0

Ask = Callable[[str], Classification]


class CommandError(Exception):
    """The command failed; the text says why."""


class PhotoError(Exception):
    """The argument is no photo, or can't be classified in this way."""


@dataclass(frozen=True, slots=True)
class Output:
    """Format and destination of the results."""

    top: int | None = None
    json: bool = False
    csv: str | None = None  # a file, or "-"
    resume: bool = False


def is_url(photo: str) -> bool:
    """Whether a photo is given by its URL."""
    return photo.startswith(("http://", "https://"))


def find(arguments: Sequence[str], skipped: Counter[str] | None = None) -> Iterator[tuple[str, Exception | None]]:
    """Yield each photo, a folder's by name, with the error of an unreadable one.

    Files of a folder that are no photos are counted in ``skipped``, by the ends of their names.
    """
    skipped = Counter() if skipped is None else skipped
    for argument in arguments:
        if is_url(argument) or not Path(argument).is_dir():
            yield argument, None
            continue
        problems: list[OSError] = []
        found = False
        for folder, folders, files in os.walk(argument, onerror=problems.append):
            # Names with a dot in front are thumbnails, rubbish bins, and macOS's ._ files, which are no photos.
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(name for name in files if not name.startswith(".")):
                path = Path(folder, name)
                if path.suffix.lower() in SUFFIXES or (not path.suffix and _begins_as_a_photo(path)):
                    found = True
                    yield str(path), None
                else:
                    skipped[path.suffix] += 1
        for problem in problems:
            yield str(problem.filename), problem
        if not (found or problems):
            yield argument, PhotoError(f"the folder holds no photo ({', '.join(sorted(SUFFIXES))})")


def _begins_as_a_photo(path: Path) -> bool:
    """Whether a file without a suffix is one of FORMATS, by its first bytes.

    An unreadable one counts as one, and fails later, by name.
    """
    try:
        # A pipe would wait for its writer.
        if not path.is_file():
            return False
        with path.open("rb") as file:
            data = file.read(12)
    except OSError:
        return True
    return (
        data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a"))
        or (data[:4] == b"RIFF" and data[8:] == b"WEBP")
        or (data[:2] == b"BM" and data[6:10] == bytes(4))
    )


def skipped_text(skipped: Counter[str]) -> str:
    """Text for skipped files, most frequent suffix first.

    As "3 files skipped, …: 2 .HEIC, 1 .tif".
    """
    kinds = sorted(skipped.items(), key=lambda one: (-one[1], one[0].lower()))
    shown = [f"{count} {suffix or 'without a suffix'}" for suffix, count in kinds[:_KINDS_SHOWN]]
    others = sum(count for _, count in kinds[_KINDS_SHOWN:])
    total = skipped.total()
    return (
        f"{total} {'file' if total == 1 else 'files'} skipped, not {FORMATS}: "
        f"{', '.join([*shown, *([f'{others} others'] if others else [])])}"
    )


@contextmanager
def by_gateway(client: Client, top: int | None) -> Iterator[Ask]:
    """Classify by a gateway."""

    def ask(photo: str) -> Classification:
        start = time.perf_counter()
        answer = client.classify(photo, top=top)
        total = {"total": (time.perf_counter() - start) * 1000}
        return replace(answer, milliseconds=total | answer.milliseconds)

    with client:
        yield ask


@contextmanager
def by_server(settings: Settings) -> Iterator[Ask]:
    """Preprocess photos here, and call a model server directly."""
    # Not at the top: by a gateway, neither gRPC nor NumPy is needed.
    from clothing_gateway.deadline import Deadline
    from clothing_gateway.errors import GatewayError
    from clothing_gateway.model.predictor import Predictor
    from clothing_gateway.pipeline import prepare, read_header, result

    predictor = Predictor(settings)
    predictor.watcher.check()
    if predictor.versions.not_ready:
        predictor.close()
        raise CommandError(predictor.versions.not_ready)
    model = predictor.versions.route()

    def ask(photo: str) -> Classification:
        if is_url(photo):
            raise PhotoError("a model server takes no URL: give a file, or ask a gateway with --gateway")
        times = [time.perf_counter()]
        data = Path(photo).read_bytes()
        times.append(time.perf_counter())
        try:
            element = prepare(data, read_header(data, settings, settings.decode_memory_bytes), model)
            times.append(time.perf_counter())
            answer = predictor.predict(model, [element], Deadline.after(settings.request_timeout_seconds))
        except GatewayError as error:
            detail = f"{error.detail} ({error.cause})" if error.cause else error.detail
            raise Problem(error.status, error.code, error.title, detail) from None
        times.append(time.perf_counter())
        found = result(settings.labels, answer.scores[0], model.output)
        return Classification(
            model=model.name,
            version=str(answer.version),
            predictions=tuple(Prediction(**one) for one in found["predictions"]),
            labels=tuple(found["labels"]) if "labels" in found else None,
            request_id="",
            milliseconds={
                step: (times[number + 1] - times[number]) * 1000
                for number, step in enumerate(("read", "decode", "predict"))
            },
        )

    try:
        yield ask
    finally:
        predictor.close()


class Notes:
    """Prints retries, at most one in _NOTE_SECONDS."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said = -_NOTE_SECONDS
        self.progress: Progress | None = None

    def retry(self, error: ClientError, pause: float) -> None:
        """Print that a photo will be retried, and why."""
        with self._lock:
            now = time.monotonic()
            if now - self._said < _NOTE_SECONDS:
                return
            self._said = now
        if self.progress is not None:
            self.progress.clear()
        print(printable(f"waiting: {error}; next attempt in {pause:.1f} s"), file=sys.stderr, flush=True)


class _Work:
    """Threads that classify photos until none is left, or until stopped."""

    def __init__(self, photos: Sequence[tuple[str, Exception | None]], ask: Ask, parallel: int) -> None:
        self._photos = iter(enumerate(photos))
        self._ask = ask
        self._lock = threading.Lock()
        self._stopping = False
        self._done: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._threads = min(parallel, len(photos))
        for _ in range(self._threads):
            # Daemons: an interrupted command waits for no response.
            threading.Thread(target=self._work, daemon=True).start()

    def stop(self) -> None:
        """Start no further photo."""
        self._stopping = True

    def outcomes(self) -> Iterator[Outcome | None]:
        """Yield outcomes in order of completion, and None every 0.1 s in between."""
        while self._threads:
            try:
                outcome = self._done.get(timeout=0.1)
            except queue.Empty:
                yield None
                continue
            if outcome is None:
                self._threads -= 1
            else:
                yield outcome

    def rest(self) -> Iterator[Outcome]:
        """Yield the outcomes that are complete, without waiting."""
        while not self._done.empty():
            if (outcome := self._done.get()) is not None:
                yield outcome

    def _work(self) -> None:
        while not self._stopping:
            with self._lock:
                found = next(self._photos, None)
            if found is None:
                break
            number, (photo, problem) = found
            answer: Classification | Exception
            try:
                answer = problem or self._ask(photo)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this photo's, and the others continue
                answer = error
            self._done.put(Outcome(photo, answer, number))
        self._done.put(None)


def run(arguments: Sequence[str], ask: Ask, output: Output, parallel: int, notes: Notes) -> bool:
    """Classify all photos; return whether each was classified.

    KeyboardInterrupt is raised after writing.
    """
    # A name that is not UTF-8 is escaped, in place of an exception.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    skipped: Counter[str] = Counter()
    photos = list(find(arguments, skipped))
    if skipped:
        print(printable(skipped_text(skipped)), file=sys.stderr, flush=True)
    with ExitStack() as stack:
        writers = _writers(photos, output, stack)
        progress = notes.progress = Progress(sys.stderr, len(photos), "photos")
        work = _Work(photos, ask, parallel)
        ended = ""
        in_a_row = 0
        try:
            for outcome in work.outcomes():
                if outcome is not None:
                    _write(outcome, writers, progress)
                    in_a_row = 0 if _is_photos_own(outcome) else in_a_row + 1
                    if in_a_row >= max(_HOPELESS_IN_A_ROW, parallel) and progress.done < len(photos):
                        ended = f"the last {in_a_row} photos failed, and for no reason of their own"
                        break
                progress.show()
        except KeyboardInterrupt:
            ended = "interrupted"
            raise
        finally:
            work.stop()
            for outcome in work.rest():
                _write(outcome, writers, progress)
            for writer in writers:
                writer.close()
            progress.clear()
            if len(photos) != 1 or ended:
                _sum_up(progress, len(photos), ended)
    return not (ended or progress.failed)


def _writers(photos: list[tuple[str, Exception | None]], output: Output, stack: ExitStack) -> list[Writer]:
    """The writers; photos that a resumed file has results for leave the list."""
    writers: list[Writer] = []
    if output.csv == "-":
        writers.append(Csv(sys.stdout, output.top))
    elif output.csv is not None:
        stream, has_header, done = open_csv(Path(output.csv), output.top, resume=output.resume)
        writers.append(Csv(stack.enter_context(stream), output.top, header=not has_header))
        if done:
            photos[:] = [one for one in photos if one[0] not in done]
            print(f"{len(done)} photos have their answers in {output.csv}", file=sys.stderr)
    if output.json:
        writers.append(JsonLines(sys.stdout, output.top))
    if not writers:
        names = [name for name, _ in photos]
        writers.append(Table(sys.stdout, names, output.top) if len(photos) > 1 else Detail(sys.stdout, output.top))
    return writers


def _write(outcome: Outcome, writers: Sequence[Writer], progress: Progress) -> None:
    progress.count(failed=isinstance(outcome.answer, Exception))
    if outcome.error or sys.stdout.isatty():
        progress.clear()
    for writer in writers:
        writer.write(outcome)
    if outcome.error:
        request_id = getattr(outcome.answer, "request_id", "")
        where = f" (request id {request_id})" if request_id else ""
        print(printable(f"error: {outcome.photo}: {outcome.error}{where}"), file=sys.stderr, flush=True)


def _is_photos_own(outcome: Outcome) -> bool:
    """Whether the photo was classified, or is itself the cause that it wasn't."""
    answer = outcome.answer
    return not isinstance(answer, ClientError) or answer.is_photos_own


def _sum_up(progress: Progress, total: int, ended: str) -> None:
    text = f"{progress.done - progress.failed} of {total} photos classified in {progress.seconds:.1f} s"
    if progress.failed:
        text += f", {progress.failed} failed"
    if progress.done < total:
        text += f", {total - progress.done} not done"
    print(text + (f": {ended}" if ended else ""), file=sys.stderr, flush=True)
