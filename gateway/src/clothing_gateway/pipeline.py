"""Inference pipeline: fetch, decode queue, decode, preprocess, Predict.

It is independent of HTTP.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from clothing_contract import Output
from clothing_contract.fitting import Fit
from clothing_contract.scores import holding, probabilities
from clothing_gateway.context import RequestContext
from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import GatewayError, ModelRefused, Overloaded, TooManyRequests
from clothing_gateway.fetch import Fetcher
from clothing_gateway.image import decode
from clothing_gateway.image.pool import DecoderPool
from clothing_gateway.limits.admission import DecodeGate, Slots, slots_in_all
from clothing_gateway.model.predictor import Predictor
from clothing_gateway.model.signature import Model
from clothing_gateway.model.tensor import Element
from clothing_gateway.settings import Settings
from clothing_gateway.telemetry.metrics import Metrics

# A photo as a client sends it: its URL, or the file.
Source = str | bytes
Scores = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Answer:
    """The model and version that answered, and for each photo its scores or its error."""

    model: Model
    version: int
    photos: list[Scores | GatewayError]


@dataclass(slots=True)
class _Prepared:
    """One photo as an element of the model's input, or its error."""

    element: Element | None = None
    error: GatewayError | None = None
    bytes: int = 0
    pixels: int = 0
    received: float = 0.0  # when a fetched photo was complete, by perf_counter


def fetching_limit(settings: Settings) -> int:
    """Limit of photos being fetched, apart from those in flight.

    One client has GATEWAY_MAX_IN_FLIGHT of them.

    So slow photo servers take no slot from uploads, and no client all of them from the others.
    """
    return 2 * settings.max_in_flight


class Classifier:
    """Classifies a request's photos."""

    def __init__(
        self,
        settings: Settings,
        predictor: Predictor,
        fetcher: Fetcher,
        *,
        gate: DecodeGate,
        slots: Slots,
        metrics: Metrics,
        decoders: DecoderPool | None = None,
        count_megapixels: Callable[[str, float], object] | None = None,
    ) -> None:
        """Store the parts, and start the threads of requests with several photos.

        ``decoders`` decode what clothing_jpeg doesn't; without them this process does.
        ``count_megapixels`` takes a client's identity and a photo's megapixels, times its scans, before it is decoded;
        raises TooManyRequests over the client's rate.
        """
        self._settings = settings
        self._predictor = predictor
        self._fetcher = fetcher
        self._gate = gate
        self._slots = slots
        self._metrics = metrics
        self._decoders = decoders
        self._count_megapixels = count_megapixels
        # A thread for each photo that is fetched or in flight, so that no request's photos queue here behind another's
        # slow fetches.
        threads = fetching_limit(settings) + slots_in_all(settings.max_in_flight)
        self._parallel = ThreadPoolExecutor(threads, thread_name_prefix="photo")

    def classify(self, sources: Sequence[Source], context: RequestContext) -> Answer:
        """Scores for each photo.

        A photo's failure is its own outcome; the model's failure is raised.
        """
        # First, as without a model all other work would be wasted.
        model = self._predictor.versions.route(context.request_id, context.model_version)
        try:
            return self._classify(sources, context, model)
        except ModelRefused:
            fallback = self._predictor.versions.fallback(model)
            if fallback is None:
                raise
        context.release_fetched()  # the photos are fetched again
        return self._classify(sources, context, fallback)

    def _classify(self, sources: Sequence[Source], context: RequestContext, model: Model) -> Answer:
        received = perf_counter()
        if len(sources) == 1:
            prepared = [self._prepare(sources[0], model, context)]
        else:
            with context.blocking():  # the photos' own threads work for it
                prepared = list(self._parallel.map(lambda source: self._prepare(source, model, context), sources))
        context.photos, context.bytes, context.pixels = len(prepared), 0, 0
        elements: list[Element] = []
        for one in prepared:
            context.bytes += one.bytes
            context.pixels += one.pixels
            received = max(received, one.received)
            if one.element is not None:
                elements.append(one.element)
        version = model.version
        rows: list[Scores] = []
        if elements:
            context.require_client()
            with context.stage("predict"), context.blocking():
                prediction = self._predictor.predict(
                    model, elements, context.deadline, context.metadata, context.client_gone, client=context.owner
                )
            version = prediction.version
            self._metrics.count_predictions(model.track, version, len(elements))
            rows = list(prediction.scores)
            # Neither the client's uplink nor the photos' servers: what the release answers for.
            self._metrics.processing.observe(perf_counter() - received)
        else:
            later = [one.error for one in prepared if isinstance(one.error, Overloaded | TooManyRequests)]
            if len(later) == len(prepared):
                raise max(later, key=lambda error: error.retry_after or 0)
        outcomes: list[Scores | GatewayError] = [one.error or rows.pop(0) for one in prepared]
        return Answer(model, version, outcomes)

    def _prepare(self, source: Source, model: Model, context: RequestContext) -> _Prepared:
        one = _Prepared()
        try:
            if isinstance(source, bytes):
                self._decode(source, model, context, one)
            else:
                context.require_client()
                with context.stage("fetch"), context.blocking():
                    fetched = self._fetcher.fetch(source, context.deadline, context.client_gone, context.owner)
                one.received = perf_counter()
                try:
                    self._enter(context)
                    self._decode(fetched.data, model, context, one)
                finally:
                    fetched.close()
        except GatewayError as error:
            # Without its frames, which hold the file, and ``one`` with this error: a cycle that only the garbage
            # collector would free, after hundreds of megabytes.
            error.__context__ = None
            one.element, one.error = None, error.with_traceback(None)
        return one

    def _enter(self, context: RequestContext) -> None:
        """Put a fetched photo in flight, or Overloaded."""
        slot = self._slots.slot(context.owner)
        if not slot.held:
            raise Overloaded
        context.working.append(slot)

    def _decode(self, data: bytes, model: Model, context: RequestContext, one: _Prepared) -> None:
        one.bytes = len(data)
        self._metrics.photo_bytes.observe(len(data))
        header = read_header(data, self._settings, self._gate.largest, model.size)
        one.pixels = header.pixels
        self._metrics.photo_pixels.observe(header.pixels)
        start = perf_counter()
        # A heavy photo waits and is decoded without the worker's permit: in another process, or in C without the GIL.
        permit = nullcontext() if self._gate.light(header.cost) else context.blocking()
        with permit, self._gate.hold(header.cost, context.deadline, context.owner):
            context.record("wait", perf_counter() - start)
            context.require_client()  # the wait may have been long
            # Within the gate, as scans are counted in the whole file.
            if self._count_megapixels is not None:
                self._count_megapixels(context.owner, decode.scanned_pixels(data, header) / 1e6)
            with context.stage("decode"):
                one.element = prepare(data, header, model, context.deadline, self._decoder(header, context))

    def _decoder(self, header: decode.Header, context: RequestContext) -> decode.Decoder | None:
        """The decode processes, for one photo; None without them."""
        if self._decoders is None:
            return None
        heavy = not self._gate.light(header.cost)
        return functools.partial(self._decoders.decode, heavy=heavy, client_gone=context.client_gone)


def read_header(data: bytes, settings: Settings, max_cost: int, size: tuple[int, int] | None = None) -> decode.Header:
    """A photo's format, size and decoding cost; raises a file's error."""
    return decode.read_header(
        data,
        settings.max_pixels,
        max_cost,
        settings.input.resampling,
        jpeg_scaling=settings.jpeg_scaling,
        exif_orientation=settings.input.exif_orientation,
        fit=Fit.of(settings.input),
        max_side=settings.max_side_pixels,
        size=size,
    )


def prepare(
    data: bytes,
    header: decode.Header,
    model: Model,
    deadline: Deadline | None = None,
    by: decode.Decoder | None = None,
) -> Element:
    """One photo as an element of the model's input; ``by`` is decode.decode's."""
    element = decode.decode(data, header, model.size, model.scaling, deadline, by=by)
    if element is None:
        return data  # decoded to validate it only: the model takes the file
    return model.arranged(element) if model.scaling is None else model.laid_out(element)


def result(labels: Sequence[str], scores: Scores, output: Output, top: int | None = None) -> dict[str, Any]:
    """A photo's answer: ``predictions``, best first, and ``labels``, which hold.

    The latter where each label has its own probability. Ties are in the order of the labels.
    """
    chances = probabilities(scores, output.scores)
    order = np.argsort(-scores, kind="stable")[:top]
    held = holding(chances, output)
    predictions = [
        {"label": labels[index], "probability": float(chances[index]), "score": float(scores[index])} for index in order
    ]
    return {"predictions": predictions} | ({} if held is None else {"labels": [labels[index] for index in held]})
