"""Python client of the gateway: classifies photos by upload or by URL.

    from clothing_gateway.client import Client, ClientError

    with Client("http://localhost:9696") as client:
        try:
            answer = client.classify("pants.jpg")
        except ClientError as error:
            print(error)
        else:
            print(answer.best.label, answer.best.probability)

ClientError                a photo was not classified
├── NoAnswer               connection failed or cut, or timed out
├── UnexpectedAnswer       the response is not a gateway's
└── Problem                the gateway's error: problem details (RFC 9457), with status and code

Its only dependency is urllib3.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.client import BadStatusLine, RemoteDisconnected
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import quote

import urllib3
from urllib3.util import parse_url

from clothing_gateway import __version__
from clothing_gateway.authorities import tls_context

# A photo: a file's path, its bytes, or a URL (http:// or https://) that the gateway fetches.
Photo = str | os.PathLike[str] | bytes

# The gateway's own deadline, 20 seconds from the first byte, and as much for uploading a large photo on a slow line.
TIMEOUT_SECONDS = 40.0
# Connect timeout: photos may take longer, connections don't.
CONNECT_SECONDS = 10.0
# With the pauses below, some 4 seconds for an unreachable gateway, and some 25 for a model that is being loaded.
ATTEMPTS = 5
# A rate limit may refuse many times: a photo that has waited a minute is reported rather than retried.
RETRY_SECONDS = 60.0

# Exponential backoff: the first pause is enough for a connection cut by a graceful shutdown; a longer outage needs time
# and no callers.
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 8.0
# The gateway's own timeout response arrives a little after its deadline, and says more than a local timeout.
_MARGIN_SECONDS = 1.0
_KEY = re.compile(r"[\x21-\x7e]+")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class ClientError(Exception):
    """A photo was not classified; ``request_id`` finds the gateway's log line."""

    request_id: str = ""
    attempts: int = 1

    @property
    def is_photos_own(self) -> bool:
        """Whether the photo is the cause, so that another one may be classified."""
        return False

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait before a retry; 0 where none were given, None for no retry."""
        return None


class NoAnswer(ClientError):
    """Connection failed or cut, or timed out."""

    def __init__(self, words: str, *, again: bool, request_id: str = "") -> None:
        super().__init__(words)
        self._again = again
        self.request_id = request_id

    @property
    def retry_after(self) -> float | None:
        """0; None after a timeout, as a retry would cost the gateway as much again."""
        return 0.0 if self._again else None


class UnexpectedAnswer(ClientError):
    """The response is not a gateway's: of a load balancer alone, or another program.

    ``status`` is 0 where it is not HTTP.
    """

    def __init__(self, words: str, status: int, retry_after: float | None = None) -> None:
        super().__init__(words)
        self.status = status
        self._retry_after = retry_after

    @property
    def retry_after(self) -> float | None:
        """Seconds of Retry-After; 0 for a load balancer's 502, 503 or 504 without it.

        Such errors are short.
        """
        if self._retry_after is not None:
            return self._retry_after
        return 0.0 if self.status in (502, 503, 504) else None


class Problem(ClientError):
    """The gateway's error; its README lists every ``code``."""

    def __init__(self, status: int, code: str, title: str, detail: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        self._retry_after = retry_after

    @property
    def is_photos_own(self) -> bool:
        """True for errors of the photo, its URL or its server, and for timeouts."""
        return self.status in (400, 408, 413, 415, 422, 424, 504)

    @property
    def retry_after(self) -> float | None:
        """The gateway's Retry-After; None where a retry would fail the same way."""
        return self._retry_after


@dataclass(frozen=True, slots=True)
class Prediction:
    """One label: its probability, and the model's raw score."""

    label: str
    probability: float
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The gateway's answer for one photo."""

    model: str
    version: str
    predictions: tuple[Prediction, ...]  # the best first
    request_id: str  # in the gateway's log and the model's call
    attempts: int = 1
    milliseconds: dict[str, float] = field(default_factory=dict)  # of each of the gateway's stages
    labels: tuple[str, ...] | None = (
        None  # above the model's threshold; None where labels have no probability of their own
    )

    @property
    def best(self) -> Prediction:
        """The likeliest label."""
        return self.predictions[0]


class Client:
    """Sends photos to one gateway over a pool of connections; thread-safe."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
        attempts: int = ATTEMPTS,
        retry_seconds: float = RETRY_SECONDS,
        connections: int = 16,
        on_retry: Callable[[ClientError, float], object] = lambda error, pause: None,
    ) -> None:
        """Store the options; ValueError for an invalid URL or key. Connects on first use.

        ``url`` is the gateway's, with its path prefix where it has one; ``key`` is sent as bearer key. ``timeout`` is
        for one attempt, in seconds, and sent to the gateway. Transient failures (503, 429, no connection) are retried,
        ``attempts`` in all, after Retry-After or else exponential backoff, both with jitter; ``on_retry`` is called
        before each pause. A 429 is a pace rather than a failure, and not counted as an attempt. No attempt starts later
        than ``retry_seconds`` after the first one. ``connections`` are kept open; more threads open more.
        """
        parts = parse_url(url)
        if parts.scheme not in ("http", "https") or not parts.host or parts.query or parts.fragment:
            raise ValueError(f"{url!r} is no gateway's address: http://HOST:PORT or https://HOST, as of its page")
        if parts.auth:
            raise ValueError("the gateway's address holds a user name or a password: give a key instead")
        if key is not None and not _KEY.fullmatch(key):
            raise ValueError("the key is empty, or holds blanks or characters that no key has")
        if timeout <= 0 or attempts < 1 or retry_seconds < 0:
            raise ValueError("timeout must be above 0, attempts at least 1, and retry_seconds at least 0")
        self.url = url.rstrip("/")
        self._timeout = timeout
        self._attempts = attempts
        self._retry_seconds = retry_seconds
        self._on_retry = on_retry
        self._headers = {
            "User-Agent": f"clothing-gateway-client/{__version__}",
            "Accept": "application/json, application/problem+json",
            "X-Request-Timeout-Ms": str(min(max(1, int(timeout * 1000)), 999_999_999)),
        }
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        # Photos are megabytes: http.client would send them in pieces of 16 kB.
        self._http = urllib3.PoolManager(
            maxsize=connections,
            retries=False,
            blocksize=1 << 18,
            # Reading the system's authorities takes 20 ms.
            ssl_context=tls_context() if self.url.lower().startswith("https:") else None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.clear()

    def classify(self, photo: Photo, *, top: int | None = None, model_version: str | None = None) -> Classification:
        """Classify a photo: all labels, or the ``top`` best.

        A photo is a file's path, the file's bytes, or a URL (http:// or https://) that the gateway fetches.
        ``model_version`` requests a version, by number or label, where the gateway allows that.

        Raises NoAnswer, UnexpectedAnswer or Problem, all of them ClientError, when the last attempt failed; OSError for
        a file that can't be read.
        """
        headers = dict(self._headers)
        # The same for every attempt: it selects the canary, and one search in the log finds them all.
        headers["X-Request-Id"] = uuid.uuid4().hex
        if model_version is not None:
            headers["X-Model-Version"] = quote(model_version)
        path = "/classify" if top is None else f"/classify?top={top}"
        if isinstance(photo, str) and photo.startswith(("http://", "https://")):
            headers["Content-Type"] = "application/json"
            return self._ask_again(path, BytesIO(json.dumps({"url": photo}).encode()), headers)
        headers["Content-Type"] = "application/octet-stream"
        if isinstance(photo, bytes):
            return self._ask_again(path, BytesIO(photo), headers)
        with Path(photo).open("rb") as file:
            return self._ask_again(path, file, headers)

    def _ask_again(self, path: str, body: BinaryIO, headers: dict[str, str]) -> Classification:
        headers["Content-Length"] = str(body.seek(0, os.SEEK_END))
        end = time.monotonic() + self._retry_seconds
        attempts = failures = 0
        while True:
            attempts += 1
            body.seek(0)
            try:
                return self._ask(path, body, headers, attempts)
            except ClientError as error:
                error.attempts = attempts
                is_pace = isinstance(error, Problem) and error.status == 429
                failures += not is_pace
                if error.retry_after is None or failures >= self._attempts:
                    raise
                longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** max(0, failures - 1))
                # Jitter: never sooner than asked for, and not all clients at the same moment.
                pause = error.retry_after + random.uniform(0, longest)  # noqa: S311 - nothing is secret about it
                if time.monotonic() + pause > end:
                    raise
                self._on_retry(error, pause)
            time.sleep(pause)

    def _ask(self, path: str, body: BinaryIO, headers: dict[str, str], attempts: int) -> Classification:
        timeout = urllib3.Timeout(connect=min(CONNECT_SECONDS, self._timeout), read=self._timeout + _MARGIN_SECONDS)
        start = time.monotonic()
        try:
            response = self._http.request(
                "POST", self.url + path, body=body, headers=headers, timeout=timeout, redirect=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise _no_answer(self.url, error, time.monotonic() - start, headers["X-Request-Id"]) from None
        return _answer(self.url, response, attempts)


def _no_answer(url: str, error: urllib3.exceptions.HTTPError, seconds: float, request_id: str) -> ClientError:
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return NoAnswer(f"{url} did not answer within {seconds:.1f} s", again=False, request_id=request_id)
    if isinstance(error, urllib3.exceptions.SSLError):
        return NoAnswer(f"no TLS connection to {url}: {_words(error)}", again=False)
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        not_now = isinstance(error.__cause__, socket.gaierror) and error.__cause__.errno == socket.EAI_AGAIN
        return NoAnswer(f"can't reach {url}: {_words(error)}", again=not_now)
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return NoAnswer(f"can't reach {url}: {_words(error)}", again=True)
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
        return NoAnswer(f"can't reach {url}: it takes no connection", again=True)
    cause = _cause(error)
    if isinstance(cause, BadStatusLine) and not isinstance(cause, RemoteDisconnected):
        return UnexpectedAnswer(f"{url} answered, and not in HTTP", 0)
    return NoAnswer(f"lost the connection to {url}: {_words(error)}", again=True, request_id=request_id)


def _cause(error: Exception) -> BaseException:
    """The innermost cause of urllib3's error."""
    cause: BaseException = error
    while cause.__cause__ is not None or (cause.args and isinstance(cause.args[-1], BaseException)):
        cause = cause.__cause__ or cause.args[-1]
    return cause


def _words(error: Exception) -> str:
    """The operating system's error message, where there is one."""
    cause = _cause(error)
    return (isinstance(cause, OSError) and cause.strerror) or str(cause)


def _answer(url: str, response: urllib3.BaseHTTPResponse, attempts: int) -> Classification:
    status, retry_after = response.status, _retry_after(response.headers.get("Retry-After"))
    if status in _REDIRECTS:
        target = response.headers.get("Location", "").partition("?")[0].removesuffix("/classify")
        raise UnexpectedAnswer(f"{url} sends on to {target or 'nowhere'}: use that address", status)
    try:
        body: Any = json.loads(response.data)
        if status == 200:
            return Classification(
                model=str(body["model"]["name"]),
                version=str(body["model"]["version"]),
                predictions=tuple(
                    Prediction(str(one["label"]), float(one["probability"]), float(one["score"]))
                    for one in body["predictions"]
                ),
                request_id=response.headers.get("X-Request-Id", ""),
                attempts=attempts,
                milliseconds=_server_timing(response.headers.get("Server-Timing", "")),
                labels=None if body.get("labels") is None else tuple(map(str, body["labels"])),
            )
        problem = Problem(status, str(body["code"]), str(body["title"]), str(body["detail"]), retry_after)
        problem.request_id = str(body["request_id"])
    except (ValueError, KeyError, TypeError):
        raise UnexpectedAnswer(
            f"{url} answered {status}, and not as a gateway does: is it one?", status, retry_after
        ) from None
    raise problem


def _retry_after(value: str | None) -> float | None:
    """The header's seconds, or those until its date; None where there is neither."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _server_timing(value: str) -> dict[str, float]:
    """Each stage's milliseconds."""
    return {name: float(dur) for name, dur in re.findall(r"([a-z]+);dur=([0-9.]+)", value)}
