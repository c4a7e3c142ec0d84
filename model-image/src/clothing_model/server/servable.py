"""One version of a model, loaded into a session as in TensorFlow Serving."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorflow as tf

from clothing_model import savedmodel
from clothing_model.errors import ModelError
from clothing_model.server import batching, config
from clothing_model.server.cpus import available_cpus
from clothing_model.server.errors import RequestError, failed_precondition, from_number, invalid, not_found
from clothing_model.server.flags import Flags
from clothing_model.server.metrics import Metrics
from clothing_model.server.tensors import Array

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Settings for loading and running, shared by all models."""

    tags: tuple[str, ...]
    session: Any  # tf.compat.v1.ConfigProto
    warmup: bool
    warmup_iterations: int
    check_method_names: bool
    xla: bool = False
    metrics: Metrics = field(default_factory=Metrics)
    batching_parameters: batching.Parameters | None = None
    per_model_batching: bool = False
    scheduler: batching.Scheduler | None = None

    @staticmethod
    def of(flags: Flags) -> Settings:
        """The settings that the flags describe.

        Raises:
            ModelError: a file that a flag names can't be used.

        """
        session = tf.compat.v1.ConfigProto()
        if flags.tensorflow_session_config_file:
            config.parse_text(flags.tensorflow_session_config_file, session)
        # TensorFlow counts the machine's CPUs; threads can use only the container's share of them.
        threads = flags.tensorflow_session_parallelism or available_cpus()
        session.intra_op_parallelism_threads = flags.tensorflow_intra_op_parallelism or threads
        session.inter_op_parallelism_threads = flags.tensorflow_inter_op_parallelism or threads
        session.gpu_options.per_process_gpu_memory_fraction = flags.per_process_gpu_memory_fraction
        parameters = config.batching_parameters(flags.batching_parameters_file) if flags.enable_batching else None
        return Settings(
            tags=tuple(flags.saved_model_tags.split(",")),
            session=session,
            warmup=flags.enable_model_warmup,
            warmup_iterations=max(1, flags.num_request_iterations_for_warmup),
            check_method_names=flags.enable_signature_method_name_check,
            xla=flags.xla_cpu_compilation_enabled or flags.xla_gpu_compilation_enabled,
            batching_parameters=parameters,
            per_model_batching=flags.enable_per_model_batching_parameters,
            scheduler=batching.Scheduler(parameters.num_batch_threads, parameters.thread_pool_name)
            if parameters
            else None,
        )


class Servable:
    """A loaded version; `run` is thread-safe."""

    def __init__(self, name: str, version: int, path: Path, settings: Settings) -> None:
        self.name = name
        self.version = version
        self.path = path
        self._settings = settings
        self._fed: dict[str, Any] = {}  # by a signature's tensor name, the placeholder that takes its place
        self._session, self.signatures = self._load()
        try:
            self._batching = self._batching_session()
        except BaseException:
            self._session.close()
            raise

    def _load(self) -> tuple[Any, dict[str, Any]]:
        _refuse_incomplete(self.path)
        self._needs_xla = not self._settings.xla and savedmodel.needs_xla(self.path)
        if self._needs_xla:
            log.warning("%s has functions with jit_compile=True: its calls fail without XLA", self.path)
        graph = tf.Graph()
        session = tf.compat.v1.Session(graph=graph, config=self._settings.session)
        try:
            with graph.as_default():
                inputs = _open_inputs(self.path)
                meta = tf.compat.v1.saved_model.load(
                    session, list(self._settings.tags), str(self.path), input_map=inputs
                )
        except tf.errors.OpError as error:
            session.close()
            raise from_number(error.error_code, error.message) from error
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            session.close()
            raise RequestError(not_found("").code, str(error)) from error
        signatures = {}
        for key, signature in meta.signature_def.items():
            kept = type(signature)()
            kept.CopyFrom(signature)
            kept.ClearField("defaults")  # as TensorFlow Serving does before it shows them
            self._fed |= {info.name: inputs[info.name] for info in kept.inputs.values() if info.name in inputs}
            signatures[key] = kept
        return session, signatures

    def _batching_session(self) -> batching.BatchingSession | None:
        """Batching session around the session, where requests are batched."""
        settings, parameters = self._settings, self._settings.batching_parameters
        if settings.scheduler is None or parameters is None:
            return None
        if settings.per_model_batching:
            file = self.path / batching.PER_MODEL_FILE
            if not file.exists():
                return None
            try:
                parameters = config.batching_parameters(str(file))
            except ModelError as error:
                raise invalid(str(error)) from error
        log.info("Wrapping session to perform batch processing: %s", parameters)
        return batching.BatchingSession(self._compute, parameters, settings.scheduler, settings.metrics)

    def signature(self, name: str) -> Any:
        """A signature by name; empty is ``serving_default``.

        Raises:
            RequestError: no such signature, or not for predict.

        """
        signature = self.signatures.get(name or savedmodel.DEFAULT_SIGNATURE)
        if signature is None:
            raise failed_precondition(f'Serving signature key "{name or savedmodel.DEFAULT_SIGNATURE}" not found.')
        methods = {f"tensorflow/serving/{method}" for method in ("predict", "classify", "regress")}
        if self._settings.check_method_names and signature.method_name not in methods:
            raise RequestError(
                from_number(13, "").code,
                f"Expected prediction signature method_name to be one of {{{', '.join(sorted(methods))}}}. "
                f"Was: {signature.method_name}",
            )
        return signature

    def run(self, feeds: dict[str, Array], fetches: list[str], timeout_ms: int = 0) -> list[Array]:
        """Compute tensors by their names in the graph, batched where batching is on.

        A timeout of 0 is none.

        Raises:
            RequestError: TensorFlow refuses the input, or the timeout passed.

        """
        if self._batching is not None:
            return self._batching.run(feeds, fetches, timeout_ms)
        return self._compute(feeds, fetches, timeout_ms)

    def _compute(self, feeds: dict[str, Array], fetches: list[str], timeout_ms: int) -> list[Array]:
        if self._needs_xla:
            raise from_number(
                13, "XLA compilation disabled: the server was started without xla_cpu_compilation_enabled"
            )
        options = tf.compat.v1.RunOptions(timeout_in_ms=timeout_ms) if timeout_ms else None
        fed = {self._fed.get(name, name): array for name, array in feeds.items()}
        try:
            found: list[Array] = self._session.run(fetches, fed, options=options)
        except tf.errors.OpError as error:
            raise from_number(error.error_code, error.message) from error
        except (ValueError, TypeError) as error:  # the session's own check of shapes and dtypes
            raise invalid(str(error)) from error
        return found

    def close(self) -> None:
        """Free the session and its weights."""
        if self._batching is not None:
            self._batching.close()
            self._batching = None  # it refers to the session
        self._session.close()
        self._session = None
        gc.collect()  # a graph refers to itself, and holds the weights until it is collected


def _open_inputs(path: Path) -> dict[str, Any]:
    """Placeholders of any size for the signatures' inputs, by tensor name.

    TensorFlow Serving's sessions check no shapes: photos of another size are computed where the graph can. Python's
    session does, by the placeholder's shape. The rank stays: oneDNN ends the process for a convolution of another rank.
    """
    if not (path / "saved_model.pb").exists():
        return {}
    found: dict[str, Any] = {}
    for signature in savedmodel.read(path).signatures.values():
        for tensor in signature.inputs.values():
            if tensor.shape and tensor.name not in found:
                dtype = tf.as_dtype(tensor.dtype.removeprefix("DT_").lower().replace("double", "float64"))
                found[tensor.name] = tf.compat.v1.placeholder(dtype, [None] * len(tensor.shape))
    return found


def _refuse_incomplete(path: Path) -> None:
    """Reject incomplete files with a clearer message than TensorFlow's."""
    if not (path / "saved_model.pb").exists() and not (path / "saved_model.pbtxt").exists():
        raise not_found(f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {path}")
    if (path / "saved_model.pb").exists():
        try:
            problems = savedmodel.read(path).problems
        except ModelError as error:
            raise failed_precondition(str(error)) from error
        if problems:
            raise failed_precondition("; ".join(problems))
