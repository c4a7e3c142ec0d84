"""Progress of a long command: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import shutil
import time
from typing import TextIO

# Redrawn more often, a bar flickers; more lines are of no use in a log.
_BAR_SECONDS = 0.1
_LINE_SECONDS = 5.0
_BAR_WIDTH = 24


class Progress:
    """Counts items; shows nothing for a single one, or before the first interval."""

    def __init__(self, stream: TextIO, total: int, noun: str) -> None:
        self._stream = stream
        self._total = total
        self._noun = noun
        self._is_terminal = stream.isatty()
        self._start = time.monotonic()
        self._said = self._start
        self._shown = False
        self.done = 0
        self.failed = 0

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def count(self, *, failed: bool) -> None:
        """Count an item as done."""
        self.done += 1
        self.failed += failed

    def show(self) -> None:
        """Draw the bar or write the line, once per interval."""
        now = time.monotonic()
        if self._total < 2 or now - self._said < (_BAR_SECONDS if self._is_terminal else _LINE_SECONDS):
            return
        self._said = now
        if not self._is_terminal:
            print(self._text(), file=self._stream, flush=True)
            return
        full = _BAR_WIDTH * self.done // self._total
        bar = "#" * full + "." * (_BAR_WIDTH - full)
        line = f"[{bar}] {self._text()}"[: shutil.get_terminal_size().columns - 1]
        print(f"\r\x1b[K{line}", end="", file=self._stream, flush=True)
        self._shown = True

    def clear(self) -> None:
        """Erase the bar, so that other output can be written."""
        if self._shown:
            print("\r\x1b[K", end="", file=self._stream, flush=True)
            self._shown = False
            self._said = 0.0  # redrawn at the next show()

    def _text(self) -> str:
        text = f"{self.done} of {self._total} {self._noun}"
        if self.failed:
            text += f", {self.failed} failed"
        if self.done:
            rate = self.done / self.seconds
            left = round((self._total - self.done) / rate)
            text += f", {rate:.1f} a second, {left // 60}:{left % 60:02} left"
        return text
