"""Structured logs: one JSON object per line, on standard error.

They are for the cluster's log collector, and still readable.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import sys
import traceback
from datetime import UTC, datetime

# A record's own attributes, which its constructor sets; those of ``extra`` follow.
_OWN_ATTRIBUTES = len(vars(logging.makeLogRecord({})))
# Made once: json.dumps would make one for each line.
_encode = json.JSONEncoder(default=str).encode


@functools.lru_cache(maxsize=2)
def _second(number: int) -> str:
    """A second of Unix time in ISO 8601, without its offset."""
    return datetime.fromtimestamp(number, UTC).replace(tzinfo=None).isoformat()


class JsonFormatter(logging.Formatter):
    """Formatter of a record as JSON.

    It has time, level, logger, message, the fields of ``extra``, and a traceback where there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write one line."""
        line: dict[str, object] = {
            "time": f"{_second(int(record.created))}.{int(record.msecs):03}+00:00",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(itertools.islice(vars(record).items(), _OWN_ATTRIBUTES, None))
        if record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return _encode(line)


def set_up(level: str) -> logging.Logger:
    """Send all logs to standard error as JSON; return the package's logger.

    Python's warnings are among them.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(capture=True)
    # Looked up for each record otherwise, and in none of our lines: logging's own documentation, "Optimization".
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # Slots limit the photos in flight (admission.py); the depth of waitress's own queue tells an operator nothing.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    return logging.getLogger("clothing_gateway")
