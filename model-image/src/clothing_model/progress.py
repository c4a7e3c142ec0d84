"""Progress of a long command, on stderr; stdout holds only the result."""

from __future__ import annotations

import sys


class Progress:
    """Progress lines for a log; on a terminal also a counter updated in place."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def count(self, what: str, done: int, of: int) -> None:
        """Show ``done`` of ``of`` on a terminal."""
        if self._terminal:
            print(f"\r{what} {done}/{of}\x1b[K", end="\r" if done == of else "", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Print a line, above the counter."""
        print(f"\x1b[K{line}" if self._terminal else line, file=sys.stderr, flush=True)
