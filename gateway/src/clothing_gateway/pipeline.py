"""From photos to scores: fetch, wait for a decoder, decode, prepare, ask the model. Knows nothing of HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import ClientLeft, GatewayError, ModelRefused
from clothing_gateway.fetch import Fetcher
from clothing_gateway.image import decode
from clothing_gateway.limits.admission import DecodeGate
from clothing_gateway.model.predictor import Predictor
from clothing_gateway.model.signature import Model
from clothing_gateway.model.tensor import Element
from clothing_gateway.settings import Settings
from clothing_gateway.telemetry.metrics import Metrics
from clothing_gateway.telemetry.tracing import Metadata, Trace

# Nobody leaves sooner, and a look at the connection lets another thread take the interpreter.
_PATIENCE_SECONDS = 0.02

# A photo as a client gives it: where it is, or the file itself.
Source = str | bytes
Scores = npt.NDArray[np.floating[Any]]


@dataclass(slots=True)
class Ticket:
    """One request on its way: who it is, how long it has, and what is noted about it for the log."""

    request_id: str
    start: float  # on the clock of time.monotonic
    deadline: Deadline
    stages: dict[str, float] = field(default_factory=dict)
    photos: int = 0
    bytes: int = 0
    pixels: int = 0
    cause: str | None = None
    selected: str | None = None  # the version that the client asks for
    key_name: str | None = None  # whose key came with it
    has_left: Callable[[], bool] = lambda: False  # whether the client has closed its connection
    # Around what others do for the request, so that meanwhile this machine's cores can work for another one.
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext
    trace: Trace | None = None
    traced: Metadata = ()  # which trace the request is a part of, as the model server is told

    @property
    def metadata(self) -> Metadata:
        """What goes to the model server with the photos."""
        return (("x-request-id", self.request_id), *self.traced)

    @property
    def note(self) -> Callable[[str, float], object] | None:
        """What a trace is told of a stage that has ended."""
        return None if self.trace is None else self.trace.stage

    def require_client(self) -> None:
        """ClientLeft where nobody waits for the answer any more."""
        if time.monotonic() - self.start > _PATIENCE_SECONDS and self.has_left():
            raise ClientLeft


@dataclass(frozen=True, slots=True)
class Answer:
    """The model that answered, and for each photo its scores or why there are none."""

    model: Model
    version: int
    photos: list[Scores | GatewayError]


@dataclass(slots=True)
class _Prepared:
    """One photo, ready for the model, and what its preparation took."""

    element: Element | None = None
    error: GatewayError | None = None
    bytes: int = 0
    pixels: int = 0
    stages: dict[str, float] = field(default_factory=dict)


class Classifier:
    """All the work between a request and its answer."""

    def __init__(
        self, settings: Settings, predictor: Predictor, fetcher: Fetcher, gate: DecodeGate, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._predictor = predictor
        self._fetcher = fetcher
        self._gate = gate
        self._metrics = metrics
        # As many as photos are admitted, so that no request with several waits here behind another one's slow fetches.
        self._side_by_side = ThreadPoolExecutor(settings.max_in_flight, thread_name_prefix="photo")

    def classify(self, sources: Sequence[Source], ticket: Ticket) -> Answer:
        """Scores for each photo. One photo's failure is its own; the model's failure is everyone's and is raised."""
        # Before any work: without a model all of it would be in vain.
        model = self._predictor.versions.route(ticket.request_id, ticket.selected)
        try:
            return self._classify(sources, ticket, model)
        except ModelRefused:
            stable = self._predictor.versions.fallback(model)
            if stable is None:
                raise
        return self._classify(sources, ticket, stable)

    def _classify(self, sources: Sequence[Source], ticket: Ticket, model: Model) -> Answer:
        ticket.photos = ticket.bytes = ticket.pixels = 0
        if len(sources) == 1:
            prepared = [self._prepare(sources[0], model, ticket)]
        else:
            prepared = list(self._side_by_side.map(lambda source: self._prepare(source, model, ticket), sources))
        for one in prepared:
            ticket.photos += 1
            ticket.bytes += one.bytes
            ticket.pixels += one.pixels
            for stage, seconds in one.stages.items():
                ticket.stages[stage] = ticket.stages.get(stage, 0.0) + seconds
        elements = [one.element for one in prepared if one.element is not None]
        version = model.version
        rows: list[Scores] = []
        if elements:
            ticket.require_client()
            with self._metrics.stage("predict", ticket.stages, ticket.note), ticket.waiting():
                prediction = self._predictor.predict(model, elements, ticket.deadline, ticket.metadata, ticket.has_left)
            version = prediction.version
            self._metrics.count_predictions(model.track, version, len(elements))
            rows = list(prediction.scores)
        outcomes: list[Scores | GatewayError] = [one.error or rows.pop(0) for one in prepared]
        return Answer(model, version, outcomes)

    def _prepare(self, source: Source, model: Model, ticket: Ticket) -> _Prepared:
        one = _Prepared()
        try:
            if isinstance(source, bytes):
                self._decode(source, model, ticket, one)
            else:
                ticket.require_client()
                with self._metrics.stage("fetch", one.stages, ticket.note), ticket.waiting():
                    fetched = self._fetcher.fetch(source, ticket.deadline, ticket.has_left)
                try:
                    self._decode(fetched.data, model, ticket, one)
                finally:
                    fetched.close()
        except GatewayError as error:
            one.element, one.error = None, error
        return one

    def _decode(self, data: bytes, model: Model, ticket: Ticket, one: _Prepared) -> None:
        one.bytes = len(data)
        self._metrics.photo_bytes.observe(len(data))
        header = read_header(data, self._settings, self._gate.memory_bytes)
        one.pixels = header.pixels
        self._metrics.photo_pixels.observe(header.pixels)
        start = perf_counter()
        with self._gate.hold(header.cost, ticket.deadline):
            one.stages["wait"] = perf_counter() - start
            self._metrics.observe_stage("wait", one.stages["wait"])
            if ticket.note is not None:
                ticket.note("wait", one.stages["wait"])
            ticket.require_client()  # the wait may have been long
            with self._metrics.stage("decode", one.stages, ticket.note):
                one.element = prepare(data, header, model, self._settings)


def read_header(data: bytes, settings: Settings, max_cost: int) -> decode.Header:
    """What a photo is and what its decoding will take, or the error that says why it can't be taken."""
    return decode.read_header(
        data, settings.max_pixels, max_cost, settings.resampling, jpeg_scaling=settings.jpeg_scaling
    )


def prepare(data: bytes, header: decode.Header, model: Model, settings: Settings) -> Element:
    """One photo as an element of the model's input."""
    preprocessing = settings.preprocessing if model.input_type == "float32" else None
    element = decode.decode(data, header, model.size, preprocessing)
    return data if element is None else element  # decoded only to know that it can be: the model gets the file


def probabilities(scores: Scores) -> Scores:
    """Scores as probabilities: logits by softmax; what already is a distribution stays as it is."""
    wide = scores.astype(np.float64)
    if (wide >= 0).all() and abs(wide.sum() - 1) < 1e-3:
        return wide
    powers = np.exp(wide - wide.max())
    return np.asarray(powers / powers.sum())


def ranked(labels: Sequence[str], scores: Scores, top: int | None = None) -> list[dict[str, str | float]]:
    """Labels with probability and score, the best first, where scores are equal in the order of the labels."""
    chances = probabilities(scores)
    order = np.argsort(-scores, kind="stable")[:top]
    return [
        {"label": labels[index], "probability": float(chances[index]), "score": float(scores[index])} for index in order
    ]
