"""Chromium for the tests of the page.

It is the system's (CHROMIUM names it where it has another name); .ci/run installs Debian's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

__all__ = ["CHROMIUM", "Browser", "chromium", "expect"]

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, while it lasts; skips where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH; install it (apt-get install chromium), or name it in CHROMIUM")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield started
        finally:
            started.close()
