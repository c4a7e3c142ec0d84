"""Classifiers: a SavedModel in this process, or a model behind a gateway."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from clothing_contract import CHANNELS, ContractError, Input, Output
from clothing_contract import signature as rules
from clothing_contract.contract import AUTO, LOGITS, SIGMOID
from clothing_contract.scaling import Scaling
from clothing_contract.scores import decide, expanded, extremes, holding
from clothing_contract.scores import probabilities as activated
from clothing_model import savedmodel
from clothing_model.errors import ModelError
from clothing_model.evaluation import dataset, metrics
from clothing_model.quiet import quiet_tensorflow
from clothing_model.savedmodel import usability_problems

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Tries of a request to a gateway at capacity, or without a model for the moment, before it counts as unavailable.
TRIES = 8
LONGEST_WAIT_SECONDS = 30.0
AGAIN = frozenset({429, 502, 503, 504})
REQUEST_TIMEOUT_SECONDS = 60.0


class PhotoError(ModelError):
    """One photo can't be classified; other photos may be."""


@dataclass(frozen=True)
class Answer:
    """Scores of one photo, in the labels' order, and the seconds of each step.

    Attributes:
        scores: float32 ``(classes,)``.
        seconds: by step.
        probabilities: float64 ``(classes,)``, where the classifier knows what its scores are; else None.
        held: bool ``(classes,)``, the labels above the threshold; None where the scores have none.

    """

    scores: NDArray[np.float32]
    seconds: dict[str, float]
    probabilities: NDArray[np.float64] | None = None
    held: NDArray[np.bool_] | None = None


class Classifier(Protocol):
    """The classifier's interface for `evaluate` and `diff`.

    Attributes:
        name: a folder, or a gateway's address, for messages.
        labels: the classes in the order of the scores.
        parallel: photos in flight.

    """

    name: str
    labels: tuple[str, ...]
    parallel: int

    def classify(self, photo: bytes) -> Answer:
        """Scores of one photo, given as the bytes of its file.

        Raises:
            PhotoError: this photo can't be classified.
            ModelError: no photo can.

        """

    def facts(self) -> dict[str, Any]:
        """Facts for the report: input, output, preprocessing, or versions that answered."""
        ...


@dataclass(frozen=True)
class Options:
    """Command-line options for what a model's files leave out."""

    labels: tuple[str, ...] | None = None
    preprocessing: str | None = None
    image_size: tuple[int, int] | None = None
    parallel: int = 4


def _scores_name(model: savedmodel.SavedModel) -> str:
    """The output that gives the scores: the only one, or the only one that can."""
    outputs = list(model.signatures[savedmodel.DEFAULT_SIGNATURE].outputs)
    possible = savedmodel.score_outputs(model)
    if len(outputs) > 1 and len(possible) != 1:
        raise ModelError(
            f"{model.path} has the outputs {', '.join(outputs)}, and which one gives the scores can't be told: "
            "make a model of that one with clothing-model convert --output-name NAME"
        )
    return possible[0] if possible else outputs[0]


class SavedModelClassifier:
    """A SavedModel, one photo per call, preprocessed as by the gateway."""

    parallel = 1  # TensorFlow uses all cores for one photo; more in flight would only blur the latency

    def __init__(self, path: Path, options: Options, default_labels: tuple[str, ...]) -> None:
        model = savedmodel.read(path)
        if problems := [*model.problems, *usability_problems(model)]:
            raise ModelError("\n  ".join([f"{model.path} can't be asked:", *problems]))
        signature = model.signatures[savedmodel.DEFAULT_SIGNATURE]  # usability_problems has found nothing
        self._input, self._output = next(iter(signature.inputs)), _scores_name(model)
        photo, output = signature.inputs[self._input], signature.outputs[self._output]
        self.name = str(model.path)
        self.labels = _labels(model, output.shape, options.labels, default_labels)
        self._contract, self._meaning = _contract(model, options.preprocessing)
        self._photo, self._scaling = _photo(model, self._input, self._contract, options.image_size)
        self._size = self._photo.size and self._photo.size[::-1]  # height, width
        self._facts = {
            "input": f"{self._input} {photo.dtype} {photo.shape}",
            "output": f"{self._output} {output.dtype} {output.shape}",
            "preprocessing": self._contract.preprocessing if photo.dtype == "DT_FLOAT" else "none",
            "labels": list(self.labels),
        }
        quiet_tensorflow()
        import tensorflow as tf

        self._tf = tf
        self._model = tf.saved_model.load(str(model.path), tags=["serve"])  # kept: it owns the variables
        self._function = self._model.signatures[savedmodel.DEFAULT_SIGNATURE]
        if self._size is not None:  # the first call plans the graph: it is slower than later ones
            self._scores(self._prepare(np.zeros((*self._size, 3), np.uint8)))

    def facts(self) -> dict[str, Any]:
        """Input, output, preprocessing and labels of the model."""
        return dict(self._facts)

    def classify(self, photo: bytes) -> Answer:
        """Scores of one photo, given as the bytes of its file.

        Raises:
            PhotoError: it can't be read, or the model refuses it.
            ModelError: the model's scores don't fit the labels.

        """
        began = time.perf_counter()
        if self._size is None:
            batch = self._tf.constant([photo])
        else:
            try:
                pixels = dataset.read_pixels(photo, self._size, self._contract)
            except dataset.UNREADABLE as error:
                raise PhotoError(f"can't be read as a photo ({error})") from error
            batch = self._prepare(pixels)
        prepared = time.perf_counter()
        try:
            scores = self._scores(batch)
        except self._tf.errors.InvalidArgumentError as error:
            raise PhotoError(f"the model refuses it ({error.message.splitlines()[0]})") from error
        seconds = {"prepare": prepared - began, "predict": time.perf_counter() - prepared}
        if self._meaning.scores == AUTO:
            return Answer(scores, seconds)
        probabilities = activated(scores, self._meaning.scores)
        return Answer(scores, seconds, probabilities, _mask(holding(probabilities, self._meaning), len(scores)))

    def _prepare(self, pixels: NDArray[Any]) -> Any:
        batch: NDArray[Any]
        if self._photo.type == "float32":
            batch = self._scaling.numbers(pixels[None])
        else:
            batch = self._scaling.ordered(np.rint(pixels[None]).astype(np.uint8))
        return self._tf.constant(np.moveaxis(batch, -1, 1) if self._photo.layout == rules.NCHW else batch)

    def _scores(self, batch: Any) -> NDArray[np.float32]:
        scores = self._output_of(batch)
        if scores.shape == (1, 1) and len(self.labels) == 2:
            if self._meaning.scores == AUTO:
                self._meaning = replace(self._meaning, scores=self._kind_of_one())
            scores = np.asarray(expanded(scores, self._meaning.scores, 2), np.float32)
        if scores.shape != (1, len(self.labels)):
            raise ModelError(
                f"{self.name} gives scores of the shape {scores.shape} for one photo, and there are "
                f"{len(self.labels)} labels: give the right ones with --labels"
            )
        first: NDArray[np.float32] = scores[0]
        return first

    def _kind_of_one(self) -> str:
        """Kind of one number for two labels, decided as by the gateway."""
        kind = None
        if self._size is not None:
            noise = np.random.default_rng(0).integers(0, 256, (*self._size, 3), np.uint8)
            pictures = [self._prepare(pixels) for pixels in (np.zeros_like(noise), np.full_like(noise, 255), noise)]
            seen = np.concatenate([self._output_of(batch) for batch in pictures])
            far = None
            if self._photo.type == "float32":
                inputs = [self._tf.constant(numbers) for numbers in extremes(tuple(pictures[0].shape))]
                far = np.concatenate([self._output_of(batch) for batch in inputs])
                far = far[np.isfinite(far[:, 0])]
            kind = decide(seen, len(self.labels), far)
        if kind is None:
            raise ModelError(
                f"{self.name} gives one number for two labels, and whether it is a {SIGMOID} or of {LOGITS} is not "
                "noted: make a model of it with clothing-model convert --scores"
            )
        return kind

    def _output_of(self, batch: Any) -> NDArray[np.float32]:
        return np.asarray(self._function(**{self._input: batch})[self._output], np.float32)


def _mask(held: list[int] | None, labels: int) -> NDArray[np.bool_] | None:
    return None if held is None else np.isin(np.arange(labels), held)


def _contract(model: savedmodel.SavedModel, preprocessing: str | None) -> tuple[Input, Output]:
    """The model's input and the meaning of its scores, as noted in it or given.

    The kind is ``auto`` where nothing is noted.
    """
    noted = dict(model.description)
    if preprocessing:  # the mean and deviation that are noted belong to another
        noted = {key: value for key, value in noted.items() if key not in ("mean", "std")}
        noted["preprocessing"] = preprocessing
    try:
        return Input.read(noted), Output.read(noted)
    except ContractError as error:
        raise ModelError(f"{model.path}: {savedmodel.DESCRIPTION}: {error}") from error


def _labels(
    model: savedmodel.SavedModel,
    shape: tuple[int, ...] | None,
    given: tuple[str, ...] | None,
    default: tuple[str, ...],
) -> tuple[str, ...]:
    noted = model.description.get("labels")
    labels = given or (tuple(noted) if noted else default)
    width = shape[-1] if shape and shape[-1] > 0 else len(labels)
    if not savedmodel.serves(width, len(labels)):
        whose = "--labels names" if given else f"{savedmodel.DESCRIPTION} notes" if noted else "the photos' folders are"
        raise ModelError(
            f"{model.path} has {width} classes, and {whose} {len(labels)} ({', '.join(labels)}): "
            "name them all with --labels, in the output's order"
        )
    return labels


def _photo(
    model: savedmodel.SavedModel, name: str, contract: Input, given: tuple[int, int] | None
) -> tuple[rules.Photo, Scaling]:
    """What the input takes, by the gateway's rules, and how pixels become its numbers."""
    tensor = model.signatures[savedmodel.DEFAULT_SIGNATURE].inputs[name]
    is_open = tensor.shape is None or -1 in tensor.shape[1:]
    wanted = (given[1], given[0]) if given else contract.image_size
    is_float = tensor.dtype == "DT_FLOAT"  # of pixels, the model's graph scales and orders the channels
    try:
        photo = rules.photo(
            name,
            tensor,
            wanted if is_open else None,
            contract.channels if is_float else CHANNELS[0],
            lambda value: f"--{value.replace('_', '-')}",
        )
        used = contract if is_float else Input(preprocessing="none")
        return photo, Scaling.of(replace(used, channels=photo.channels))
    except ContractError as error:
        raise ModelError(f"{model.path}: {error}") from error


class GatewayClassifier:
    """The model behind a running gateway: photos are uploaded to /classify."""

    def __init__(self, address: str, parallel: int) -> None:
        import urllib3

        self._urllib3 = urllib3
        self.name = address
        self.parallel = parallel
        self.labels: tuple[str, ...] = ()
        self._url = address.rstrip("/") + "/classify"
        self._models: dict[str, int] = {}
        self._retries = 0
        self._lock = threading.Lock()
        try:
            scheme = urllib3.util.parse_url(address).scheme
        except urllib3.exceptions.LocationParseError:
            scheme = None
        if scheme not in ("http", "https"):
            raise ModelError(f"{address}: give the gateway's address as http://HOST:PORT")
        self._http = urllib3.PoolManager(maxsize=parallel, timeout=REQUEST_TIMEOUT_SECONDS)

    def facts(self) -> dict[str, Any]:
        """Labels, count of responses by model version, and number of retries."""
        return {"labels": list(self.labels), "models": dict(self._models), "retries": self._retries}

    def classify(self, photo: bytes) -> Answer:
        """Scores of one photo, given as its file's bytes; 503 and 429 are retried.

        Raises:
            PhotoError: the gateway refuses the photo.
            ModelError: the gateway can't be reached, or is no gateway.

        """
        headers = {"Content-Type": "application/octet-stream", "Accept": "application/json"}
        for attempt in range(1, TRIES + 1):
            began = time.perf_counter()
            wait = min(LONGEST_WAIT_SECONDS, 0.25 * 2**attempt)
            try:
                answer = self._http.request("POST", self._url, body=photo, headers=headers, retries=False)
            except self._urllib3.exceptions.HTTPError as error:
                reason = f"can't be reached ({error})"
                if not self._models:  # it never was reachable: the address is wrong, and a retry is of no use
                    raise ModelError(f"{self.name} {reason}: is the gateway there? Its port is 9696") from error
            else:
                took = time.perf_counter() - began
                if answer.status not in AGAIN:
                    scores, probabilities, held = self._read(answer)
                    return Answer(scores, {"request": took}, probabilities, held)
                reason = f"answers {answer.status} ({_detail(answer)})"
                wait = self._retry_after(answer, wait)
            if attempt < TRIES:
                with self._lock:
                    self._retries += 1
                time.sleep(wait)
        raise ModelError(f"{self.name} {reason}, {TRIES} times in a row: is the gateway there, and its model ready?")

    def _retry_after(self, answer: Any, otherwise: float) -> float:
        """Seconds of a Retry-After header, which is a number or a date."""
        try:
            asked = self._urllib3.Retry().get_retry_after(answer)
        except self._urllib3.exceptions.InvalidHeader:
            asked = None
        return otherwise if asked is None else min(LONGEST_WAIT_SECONDS, float(asked))

    def _read(self, answer: Any) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_] | None]:
        """Scores, probabilities and the labels that hold, all the gateway's.

        It knows what its model's scores are; the scores alone don't tell.
        """
        if answer.status != 200:
            if answer.status in (400, 413, 415, 422):
                raise PhotoError(f"{answer.status}: {_detail(answer)}")
            raise ModelError(
                f"{self._url} answers {answer.status} ({_detail(answer)}): give a gateway's address, without a path"
            )
        try:
            body = answer.json()
            found = {str(each["label"]): (each["score"], each["probability"]) for each in body["predictions"]}
            numbers = {label: (float(score), float(probability)) for label, (score, probability) in found.items()}
            model = f"{body['model']['name']} {body['model']['version']}"
            named = None if body.get("labels") is None else {str(label) for label in body["labels"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{self._url} answers what no gateway does: {answer.data[:200]!r}") from error
        with self._lock:
            if not self.labels:
                self.labels = tuple(sorted(numbers))
            self._models[model] = self._models.get(model, 0) + 1
        if set(numbers) != set(self.labels):
            raise ModelError(f"{self.name} changed its labels meanwhile: {', '.join(sorted(numbers))}; start again")
        scores, probabilities = zip(*(numbers[label] for label in self.labels), strict=True)
        held = None if named is None else np.array([label in named for label in self.labels])
        return np.array(scores, np.float32), np.array(probabilities), held


def _detail(answer: Any) -> str:
    """A problem's text (RFC 9457), or the start of any other response."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return str(answer.data[:200].decode("utf-8", "replace").strip() or "no text")


def open_classifier(where: str, options: Options, default_labels: tuple[str, ...] = ()) -> Classifier:
    """Open a gateway (http://…) or a SavedModel's folder as a classifier.

    ``default_labels`` are taken for a SavedModel that has none noted, where ``options`` has none either.

    Raises:
        ModelError: nothing usable is there.

    """
    if "://" in where:
        return GatewayClassifier(where, options.parallel)
    return SavedModelClassifier(Path(where), options, default_labels)


@dataclass
class Scored:
    """A classifier's results for a list of photos.

    Attributes:
        index: which of the photos were classified: positions in the list that was asked about.
        scores: float32 ``(len(index), classes)``.
        probabilities: float64, in the same form: the classifier's own, else by the range of all scores.
        held: bool, in the same form, the labels above the threshold; None where the scores have none.
        seconds: for each step, as long as ``index``.
        failed: position and reason of those that could not be classified.
        wall_seconds: of all together.

    """

    index: NDArray[np.int64]
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float64]
    seconds: dict[str, list[float]]
    held: NDArray[np.bool_] | None = None
    failed: dict[int, str] = field(default_factory=dict)
    wall_seconds: float = 0.0


def score(
    classifier: Classifier, paths: tuple[Path, ...], progress: Callable[[int, int], None] | None = None
) -> Scored:
    """Classify all photos, ``classifier.parallel`` of them in flight.

    Failures are recorded, not raised.

    Raises:
        ModelError: the classifier itself fails, or no photo can be classified.

    """
    answers: dict[int, Answer] = {}
    failed: dict[int, str] = {}
    stop = threading.Event()
    done = 0
    lock = threading.Lock()

    def ask(number: int) -> None:
        nonlocal done
        if stop.is_set():
            return
        try:
            answers[number] = classifier.classify(paths[number].read_bytes())
        except (PhotoError, OSError) as error:
            failed[number] = str(error)
        except BaseException:
            stop.set()
            raise
        with lock:
            done += 1
            if progress is not None:
                progress(done, len(paths))

    began = time.perf_counter()
    pool = ThreadPoolExecutor(max_workers=classifier.parallel)
    try:
        for result in [pool.submit(ask, number) for number in range(len(paths))]:
            result.result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    wall = time.perf_counter() - began
    if not answers:
        first = failed[min(failed)]
        raise ModelError(f"{classifier.name} classified none of {len(paths)} photos; the first: {first}")
    index = sorted(answers)
    steps = answers[index[0]].seconds
    scores = np.stack([answers[number].scores for number in index])
    own = [found for number in index if (found := answers[number].probabilities) is not None]
    held = [mask for number in index if (mask := answers[number].held) is not None]
    return Scored(
        index=np.array(index, np.int64),
        scores=scores,
        probabilities=np.stack(own) if len(own) == len(index) else metrics.probabilities(scores),
        seconds={step: [answers[number].seconds[step] for number in index] for step in steps},
        held=np.stack(held) if len(held) == len(index) else None,
        failed=dict(sorted(failed.items())),
        wall_seconds=wall,
    )
