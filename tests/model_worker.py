"""The process of model_kinds.py, which makes models and runs `clothing-model` in TensorFlow's environment."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import MODEL_BIN, ROOT


@dataclass
class Worker:
    """The process, while ``worker()`` lasts."""

    process: subprocess.Popen[str]
    log: Path

    def ask(self, **request: Any) -> dict[str, Any]:
        """The reply to a request, as model_kinds.py describes both."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request, default=str), file=self.process.stdin, flush=True)
        reply = self.process.stdout.readline()
        assert reply, f"{request}:\n{self.log.read_text()[-3000:]}"
        found: dict[str, Any] = json.loads(reply)
        return found

    def run(self, *words: str | Path) -> str:
        """`clothing-model WORDS`, which must succeed; what it prints."""
        done = self.ask(command=list(words))
        assert done["code"] == 0, f"{words}: {done['stdout']}{done['stderr']}"
        return str(done["stdout"])


@contextlib.contextmanager
def worker(log: Path) -> Iterator[Worker]:
    """The process; it ends with the last request."""
    command = [MODEL_BIN / "python", ROOT / "tests/model_kinds.py"]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        yield Worker(process, log)
        assert process.stdin is not None
        process.stdin.close()
