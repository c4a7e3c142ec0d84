"""TensorFlow Serving's flags, with its syntax and defaults.

The syntax is `--name=value`; a switch needs no value.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from clothing_model.errors import ModelError
from clothing_model.server.cpus import schedulable_cpus

_THREADS_PER_CPU = 4  # main.cc


class FlagError(ModelError):
    """A flag is unknown, or its value is not of its kind."""


def _honoured(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text, "honoured": True})


def _accepted(default: Any, why: str, same: Any = None) -> Any:
    """A flag of TensorFlow Serving without effect here; if set, the log says `why`.

    `same` is the value that asks for what is done anyway.
    """
    return field(default=default, metadata={"help": why, "honoured": False, "same": same})


@dataclass(frozen=True)
class Flags:
    """The server's flags. 0 means by the number of CPUs, or off: see each flag's help."""

    port: int = _honoured(8500, "gRPC port; 0: none")
    grpc_socket_path: str = _honoured("", "UNIX socket for gRPC, beside the port or instead of it")
    rest_api_port: int = _honoured(0, "HTTP port of the REST API and the metrics; 0: none")
    rest_api_num_threads: int = _honoured(
        0, "threads of the REST server: N run N-1 requests concurrently, others wait; 0: 4 per CPU of the machine"
    )
    rest_api_timeout_in_ms: int = _honoured(30000, "longest time for a REST predict request")
    rest_api_enable_cors_support: bool = _honoured(False, "answer with CORS headers")
    listen_host: str = _honoured("::", "address to listen on, :: for IPv6 and IPv4; of this server only")
    handle_signals: bool = _honoured(
        True, "graceful shutdown at SIGTERM and SIGINT; false: no handler, as upstream; of this server only"
    )
    model_name: str = _honoured("default", "name of the model, where there is no model_config_file")
    model_base_path: str = _honoured("", "folder that holds the model's version folders")
    model_config_file: str = _honoured(
        "", "ModelServerConfig in protobuf's text form: several models, policies, labels"
    )
    model_config_file_poll_wait_seconds: int = _honoured(0, "poll interval of model_config_file, seconds; 0: never")
    allow_version_labels_for_unavailable_models: bool = _honoured(False, "labels may be set before their version is up")
    file_system_poll_wait_seconds: int = _honoured(1, "poll interval for new versions, seconds; 0: only once")
    max_num_load_retries: int = _honoured(5, "how often a failed load is tried again")
    load_retry_interval_micros: int = _honoured(60_000_000, "pause before a load is tried again")
    saved_model_tags: str = _honoured("serve", "tags of the graph to load, separated by commas")
    enable_model_warmup: bool = _honoured(True, "run assets.extra/tf_serving_warmup_requests before serving")
    num_request_iterations_for_warmup: int = _honoured(0, "how often each warm-up request is run; 0: once")
    monitoring_config_file: str = _honoured("", "MonitoringConfig in protobuf's text form: turns the metrics page on")
    grpc_channel_arguments: str = _honoured("", "gRPC's server arguments: key=value,key=value")
    grpc_max_threads: int = _honoured(
        0, "threads of the gRPC server: N run N-1 calls concurrently, others are refused; 0: 4 per CPU of the machine"
    )
    ssl_config_file: str = _honoured("", "SSLConfig in protobuf's text form: TLS, and mTLS, for gRPC")
    enable_grpc_healthcheck_service: bool = _honoured(False, "serve grpc.health.v1")
    enable_serialization_as_tensor_content: bool = _honoured(False, "answer with tensor_content in place of float_val")
    enable_signature_method_name_check: bool = _honoured(False, "refuse signatures that are not for predict")
    tensorflow_session_parallelism: int = _honoured(0, "TensorFlow's threads, both kinds; 0: one per CPU")
    tensorflow_intra_op_parallelism: int = _honoured(0, "threads within one operation; 0: one per CPU")
    tensorflow_inter_op_parallelism: int = _honoured(0, "operations run concurrently; 0: one per CPU")
    tensorflow_session_config_file: str = _honoured("", "TensorFlow's ConfigProto in protobuf's text form")
    enable_batching: bool = _honoured(False, "dynamic batching: compute concurrent requests together")
    batching_parameters_file: str = _honoured("", "BatchingParameters in protobuf's text form; needs enable_batching")
    enable_per_model_batching_parameters: bool = _honoured(
        False, "batch only models with batching_params.pbtxt beside saved_model.pb, as it says; needs enable_batching"
    )
    per_process_gpu_memory_fraction: float = _honoured(0.0, "share of a GPU's memory; 0: TensorFlow chooses")
    xla_cpu_compilation_enabled: bool = _honoured(False, "compute functions with jit_compile=True, which are refused")
    xla_gpu_compilation_enabled: bool = _honoured(False, "the same, on a GPU, too")
    version: bool = _honoured(False, "print the versions and exit")

    num_load_threads: int = _accepted(0, "models are loaded one after the other, beside the requests")
    num_unload_threads: int = _accepted(0, "models are unloaded one after the other, beside the requests")
    flush_filesystem_caches: bool = _accepted(True, "the system's file cache is left alone")
    remove_unused_fields_from_bundle_metagraph: bool = _accepted(True, "only the signatures are kept anyway")
    enable_profiler: bool = _accepted(True, "there is no profiler service", same=False)
    use_alts_credentials: bool = _accepted(False, "ALTS works on Google's machines only")
    platform_config_file: str = _accepted("", "TensorFlow is the only platform")
    prefer_tflite_model: bool = _accepted(False, "TensorFlow Lite models are not served")
    num_tflite_pools: int = _accepted(0, "TensorFlow Lite models are not served")
    num_tflite_interpreters_per_pool: int = _accepted(1, "TensorFlow Lite models are not served")
    thread_pool_factory_config_file: str = _accepted("", "thread pools are TensorFlow's own")
    mixed_precision: str = _accepted("", "models run in the precision that they were saved with")
    skip_initialize_tpu: bool = _accepted(False, "there is no TPU")

    @property
    def grpc_threads(self) -> int:
        """Threads for gRPC calls, one of which waits for the next call."""
        return self.grpc_max_threads if self.grpc_max_threads > 0 else _THREADS_PER_CPU * schedulable_cpus()

    @property
    def rest_threads(self) -> int:
        """Threads for REST requests, one of which runs the event loop."""
        return self.rest_api_num_threads if self.rest_api_num_threads > 0 else _THREADS_PER_CPU * schedulable_cpus()

    @property
    def channel_arguments(self) -> list[tuple[str, int | str]]:
        """Channel arguments for gRPC; a value that parses as an integer is one."""
        arguments: list[tuple[str, int | str]] = []
        for argument in filter(None, self.grpc_channel_arguments.split(",")):
            key, separator, value = argument.partition("=")
            if not separator:
                raise FlagError(f"--grpc_channel_arguments: {argument!r} is not key=value")
            arguments.append((key.strip(), int(value) if value.strip().lstrip("-").isdigit() else value))
        return arguments


def parse(arguments: Sequence[str]) -> tuple[Flags, list[str]]:
    """Parse the flags; log a line for each one without effect."""
    known = {flag.name: flag for flag in dataclasses.fields(Flags)}
    given: dict[str, Any] = {}
    notes = []
    for argument in arguments:
        name, separator, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in known:
            raise FlagError(f"unknown argument: {argument}\n{_suggestion(argument, name, known)}")
        flag = known[name]
        given[name] = _value(flag, argument, value if separator else None)
        if not flag.metadata["honoured"] and given[name] not in (flag.default, flag.metadata["same"]):
            notes.append(f"--{name} is accepted without effect: {flag.metadata['help']}")
    flags = Flags(**given)
    _check(flags)
    if flags.grpc_threads == 1:
        notes.append("--grpc_max_threads=1 refuses every call: one thread waits for the next call; give 2 or more")
    if flags.rest_api_port and flags.rest_threads == 1:
        notes.append("--rest_api_num_threads=1 answers no request: one thread runs the event loop; give 2 or more")
    return flags, notes


def _suggestion(argument: str, name: str, known: dict[str, Any]) -> str:
    import difflib

    if not argument.startswith("-"):
        return "A flag and its value are one word, with an equals sign: --port=8500"
    close = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), known, 1)
    return f"Did you mean --{close[0]}?" if close else "`clothing-model serve --help` lists the flags"


def _value(flag: dataclasses.Field[Any], argument: str, value: str | None) -> Any:
    if isinstance(flag.default, bool):
        if value is None or value in ("true", "1"):
            return True
        if value in ("false", "0"):
            return False
        raise FlagError(f"{argument}: give true or false")
    if value is None:
        raise FlagError(f"{argument}: give a value, with an equals sign: --{flag.name}={flag.default or '…'}")
    try:
        kind: Any = type(flag.default)
        return kind(value)
    except ValueError as error:
        raise FlagError(f"{argument}: give a number") from error


def _check(flags: Flags) -> None:
    """Reject flags with which TensorFlow Serving does not start."""
    if flags.version:
        return
    _check_combinations(flags)
    if not 0 <= flags.per_process_gpu_memory_fraction <= 1:
        raise FlagError(f"--per_process_gpu_memory_fraction={flags.per_process_gpu_memory_fraction}: between 0 and 1")
    _ = flags.channel_arguments  # raises what is wrong with them
    for name in (
        "model_config_file", "monitoring_config_file", "ssl_config_file", "tensorflow_session_config_file",
        "batching_parameters_file",
    ):  # fmt: skip
        path = getattr(flags, name)
        if path and not os.path.isfile(path):  # noqa: PTH113 - a path as the user wrote it
            raise FlagError(f"--{name}={path}: there is no such file")


def _check_combinations(flags: Flags) -> None:
    if flags.port == 0 and not flags.grpc_socket_path:
        raise FlagError("give --port or --grpc_socket_path: gRPC needs one of them")
    if not flags.model_base_path and not flags.model_config_file:
        raise FlagError("give --model_base_path or --model_config_file: without either there is nothing to serve")
    if flags.batching_parameters_file and not flags.enable_batching:
        raise FlagError("--batching_parameters_file needs --enable_batching")
    if flags.use_alts_credentials and flags.ssl_config_file:
        raise FlagError("give --use_alts_credentials or --ssl_config_file, not both")
    if min(flags.tensorflow_intra_op_parallelism, flags.tensorflow_inter_op_parallelism,
           flags.tensorflow_session_parallelism) > 0:  # fmt: skip
        raise FlagError(
            "give --tensorflow_session_parallelism, or --tensorflow_intra_op_parallelism and "
            "--tensorflow_inter_op_parallelism, not all three"
        )
    if flags.rest_api_port and flags.rest_api_port == flags.port:
        raise FlagError(f"--rest_api_port={flags.rest_api_port} is --port too: give two different ports")


def usage() -> str:
    """The text of ``serve --help``."""
    lines = ["usage: clothing-model serve --model_name=NAME --model_base_path=DIR [--flag=value …]", ""]
    for title, honoured in (("flags", True), ("accepted, without effect", False)):
        lines.append(f"{title}:")
        for flag in dataclasses.fields(Flags):
            if flag.metadata["honoured"] == honoured:
                default = str(flag.default).lower() if isinstance(flag.default, bool) else repr(flag.default)
                lines.append(f"  --{flag.name}={default}  {flag.metadata['help']}")
        lines.append("")
    return "\n".join(lines)
