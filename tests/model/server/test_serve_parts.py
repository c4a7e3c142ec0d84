"""What the server is made of, where a process would only be slower: flags, CPUs, configuration files, metrics."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from served import FakeServable, free_port, manager_of

from clothing_model.commands.cli import main
from clothing_model.errors import ModelError
from clothing_model.server import flags
from clothing_model.server.cpus import available_cpus, schedulable_cpus
from clothing_model.server.errors import RequestError
from clothing_model.server.flags import FlagError, Flags
from clothing_model.server.manager import next_action

BASE = "--model_base_path=/models/m"

# TensorFlow Serving 2.20's flags, from model_servers/main.cc.
UPSTREAM = """
allow_version_labels_for_unavailable_models batching_parameters_file enable_batching enable_grpc_healthcheck_service
enable_model_warmup enable_per_model_batching_parameters enable_profiler enable_serialization_as_tensor_content
enable_signature_method_name_check file_system_poll_wait_seconds flush_filesystem_caches grpc_channel_arguments
grpc_max_threads grpc_socket_path load_retry_interval_micros max_num_load_retries mixed_precision model_base_path
model_config_file model_config_file_poll_wait_seconds model_name monitoring_config_file num_load_threads
num_request_iterations_for_warmup num_tflite_interpreters_per_pool num_tflite_pools num_unload_threads
per_process_gpu_memory_fraction platform_config_file port prefer_tflite_model
remove_unused_fields_from_bundle_metagraph rest_api_enable_cors_support rest_api_num_threads rest_api_port
rest_api_timeout_in_ms saved_model_tags skip_initialize_tpu ssl_config_file tensorflow_inter_op_parallelism
tensorflow_intra_op_parallelism tensorflow_session_config_file tensorflow_session_parallelism
thread_pool_factory_config_file use_alts_credentials version xla_cpu_compilation_enabled xla_gpu_compilation_enabled
""".split()


def test_every_flag_of_tensorflow_serving() -> None:
    ours = {field.name for field in dataclasses.fields(Flags)}
    assert ours - set(UPSTREAM) == {"listen_host", "handle_signals"}
    assert set(UPSTREAM) <= ours


def test_readme_lists_every_flag() -> None:
    readme = (Path(__file__).parents[3] / "model-image" / "README.md").read_text()
    for field in dataclasses.fields(Flags):
        assert f"`{field.name}`" in readme


def test_values() -> None:
    parsed, notes = flags.parse(
        [
            BASE,
            "--port=1",
            "--skip_initialize_tpu",
            "--enable_model_warmup=false",
            "--per_process_gpu_memory_fraction=0.5",
        ]
    )
    assert (parsed.port, parsed.skip_initialize_tpu, parsed.enable_model_warmup) == (1, True, False)
    assert parsed.per_process_gpu_memory_fraction == 0.5
    assert len(notes) == 1
    arguments = "grpc.max_connection_age_ms=2000,grpc.primary_user_agent=x"
    parsed, _ = flags.parse([BASE, f"--grpc_channel_arguments={arguments}"])
    assert parsed.channel_arguments == [("grpc.max_connection_age_ms", 2000), ("grpc.primary_user_agent", "x")]
    assert parsed.grpc_threads == parsed.rest_threads == 4 * schedulable_cpus()
    assert flags.parse([BASE, "--enable_batching"])[0].grpc_threads == parsed.grpc_threads
    _, notes = flags.parse([BASE, "--grpc_max_threads=1", "--rest_api_num_threads=1", "--rest_api_port=1"])
    assert [note.split(":")[0] for note in notes] == [
        "--grpc_max_threads=1 refuses every call",
        "--rest_api_num_threads=1 answers no request",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modelname=m", BASE], "Did you mean --model_name?"),
        (["--port", "8500", BASE], "--port: give a value, with an equals sign: --port=8500"),
        (["-port=8500", BASE], "unknown argument: -port=8500"),
        ([BASE, "models"], "one word, with an equals sign"),
        (["--port=http", BASE], "--port=http: give a number"),
        (["--enable_batching=yes", BASE], "give true or false"),
        ([], "give --model_base_path or --model_config_file"),
        ([BASE, "--port=0"], "give --port or --grpc_socket_path"),
        ([BASE, "--rest_api_port=8500"], "two different ports"),
        ([BASE, "--batching_parameters_file=/b"], "needs --enable_batching"),
        ([BASE, "--enable_batching", "--batching_parameters_file=/nowhere"], "there is no such file"),
        ([BASE, "--model_config_file=/nowhere"], "there is no such file"),
        ([BASE, "--grpc_channel_arguments=age"], "'age' is not key=value"),
        ([BASE, "--per_process_gpu_memory_fraction=2"], "between 0 and 1"),
        (
            [BASE, "--tensorflow_intra_op_parallelism=1", "--tensorflow_inter_op_parallelism=1",
             "--tensorflow_session_parallelism=1"], "not all three",
        ),
    ],
)  # fmt: skip
def test_refused_flags(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(FlagError, match=re.escape(message)):
        flags.parse(arguments)
    assert main(["serve", *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "usage: clothing-model serve" in printed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--version"]) == 0
    assert re.search(r"^tensorflow(-cpu)? \d", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_cpus_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cpus: int | None
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cpus(tmp_path) == (cpus or 16)


def test_monitoring_config(tmp_path: Path) -> None:
    from clothing_model.server import config

    file = tmp_path / "monitoring.config"
    default = "/monitoring/prometheus/metrics"
    for text, path in {
        "prometheus_config { enable: true }": default,
        "# on\nprometheus_config: {\n  enable: true,\n  path: '/metrics'\n}": "/metrics",
        "prometheus_config < enable: false >": None,
        "": None,
    }.items():
        file.write_text(text)
        assert config.metrics_path(str(file)) == path
    file.write_text("prometheus { enable: true }")
    with pytest.raises(ModelError, match="not a MonitoringConfig in protobuf's text form"):
        config.metrics_path(str(file))


def test_ssl_config(tmp_path: Path) -> None:
    from clothing_model.server import config

    file = tmp_path / "ssl.config"
    file.write_text('server_key: "key"\nserver_cert: "a\\n" "b"\ncustom_ca: "ca"\nclient_verify: true\n')
    found = config.ssl(str(file))
    assert (found.key, found.certificate, found.authority, found.client_verify) == (b"key", b"a\nb", b"ca", True)
    file.write_text('server_key: "key"')
    with pytest.raises(ModelError, match="server_key and server_cert are needed"):
        config.ssl(str(file))


def test_tls(tmp_path: Path) -> None:
    """A certificate of our own, and a client that trusts it alone; without a certificate of its own it gets no word."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from clothing_model.server import grpc_api
    from clothing_model.server.metrics import Metrics

    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    pem = {name: json.dumps(path.read_text()) for name, path in (("key", key), ("cert", certificate))}
    file = tmp_path / "ssl.config"
    file.write_text(f"server_key: {pem['key']} server_cert: {pem['cert']} custom_ca: {pem['cert']} client_verify: true")
    (tmp_path / "1").mkdir()
    port = free_port()
    given = Flags(
        port=port,
        listen_host="127.0.0.1",
        model_base_path="/m",
        ssl_config_file=str(file),
        enable_grpc_healthcheck_service=True,
    )
    server = grpc_api.start(given, manager_of(tmp_path, FakeServable), Metrics())
    try:
        for private, allowed in ((key.read_bytes(), True), (None, False)):
            credentials = grpc.ssl_channel_credentials(
                certificate.read_bytes(), private, certificate.read_bytes() if private else None
            )
            with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
                check = health_pb2_grpc.HealthStub(channel).Check
                if allowed:
                    assert check(health_pb2.HealthCheckRequest(), timeout=30).status == 1
                else:
                    with pytest.raises(grpc.RpcError) as caught:
                        check(health_pb2.HealthCheckRequest(), timeout=30)
                    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("dualstack", [True, False])
def test_listens_on_ipv6_and_ipv4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dualstack: bool) -> None:
    """By default, for pods of IPv6, IPv4 and both; on a node without IPv6 IPv4 alone."""
    from clothing_model.server import grpc_api, rest_api
    from clothing_model.server.metrics import Metrics

    if not dualstack:
        monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    (tmp_path / "1").mkdir()
    given = Flags(port=free_port(), rest_api_port=free_port(), model_base_path="/m")
    manager = manager_of(tmp_path, FakeServable)
    grpc_server = grpc_api.start(given, manager, Metrics())
    rest_server = rest_api.start(given, manager, Metrics(), None)
    try:
        for address in ("127.0.0.1", *(["::1"] if dualstack else [])):
            for port in (given.port, given.rest_api_port):
                with socket.create_connection((address, port), timeout=5) as connection:
                    if port == given.rest_api_port:
                        connection.sendall(b"GET /v1/models/none HTTP/1.0\r\n\r\n")
                        assert connection.recv(1000).startswith(b"HTTP/1.1 404 ")
        assert rest_server.address_family == (socket.AF_INET6 if dualstack else socket.AF_INET)
    finally:
        grpc_server.stop(None).wait()
        rest_server.shutdown()
        rest_server.server_close()


def test_metrics_page() -> None:
    from clothing_model.server.metrics import Metrics

    metrics = Metrics()
    metrics.requests.increment('a"b\\c', "OK")
    for microseconds in (5, 10, 11, 10**12):
        metrics.request_latency.observe(microseconds, "m", "Predict", "GRPC")
    page = metrics.page()
    assert ':tensorflow:serving:request_count{model_name="a\\"b\\\\c",status="OK"} 1\n' in page
    labels = 'model_name="m",API="Predict",entrypoint="GRPC"'
    for le, count in {"10": 2, "18": 3, "32.4": 3, "+Inf": 4}.items():
        assert f':tensorflow:serving:request_latency_bucket{{{labels},le="{le}"}} {count}\n' in page
    assert f":tensorflow:serving:request_latency_count{{{labels}}} 4\n" in page


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8", "int64", "bool", "float16", "bfloat16"])
@pytest.mark.parametrize("as_content", [True, False])
def test_tensors_both_ways(dtype: str, as_content: bool) -> None:
    import numpy as np
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    from clothing_model.server import tensors

    wanted = tf.cast(tf.constant([[0, 1, 2], [3, 4, 5]]), tf.as_dtype(dtype)).numpy()
    proto = tensor_pb2.TensorProto()
    tensors.into_proto(wanted, proto, as_content)
    assert bool(proto.tensor_content) == (as_content or dtype in ("float16", "bfloat16"))
    assert np.array_equal(tf.make_ndarray(proto), wanted)
    assert np.array_equal(tensors.from_proto("x", proto, tf.as_dtype(dtype), 0), wanted)


def test_text_tensors() -> None:
    import numpy as np
    import tensorflow as tf

    from clothing_model.server import tensors

    array = tensors.from_json("photo_bytes", [{"b64": "/9j/"}, "text"], tf.string)
    assert array.tolist() == [b"\xff\xd8\xff", b"text"]
    proto = tf.make_tensor_proto(array.tolist())
    assert tensors.from_proto("x", proto, tf.string, 0).tolist() == array.tolist()
    assert tensors.to_json("photo_bytes", array) == [{"b64": "/9j/"}, {"b64": "dGV4dA=="}]
    assert tensors.to_json("photo", array[1:]) == ["text"]
    assert tensors.to_json("score", np.array([0.1, 1.0, 1e-7], np.float32)) == [0.1, 1.0, 1e-07]
    with pytest.raises(Exception, match="Unable to base64 decode"):
        tensors.from_json("photo", [{"b64": "%"}], tf.string)


def test_version_is_unloaded_after_its_last_request(tmp_path: Path) -> None:
    import threading

    from tensorflow_serving.apis import model_pb2

    (tmp_path / "1").mkdir()
    manager = manager_of(tmp_path, FakeServable)
    manager.poll()
    spec = model_pb2.ModelSpec(name="m")
    with manager.use(spec) as first:
        (tmp_path / "2").mkdir()
        exchange = threading.Thread(target=manager.poll)
        exchange.start()
        while manager.states("m")[1].stage.name != "UNLOADING":
            exchange.join(0.01)
        with manager.use(spec) as newest:
            assert newest.version == 2
        assert not first.closed
    exchange.join(10)
    assert first.closed
    assert {version: state.stage.name for version, state in manager.states("m").items()} == {1: "END", 2: "AVAILABLE"}


def test_failed_version_is_retried_when_its_folder_returns(tmp_path: Path) -> None:
    attempts = []

    def load(*arguments: Any) -> FakeServable:
        attempts.append(arguments[1])
        return FakeServable(*arguments)

    (tmp_path / "1").mkdir()
    manager = manager_of(tmp_path, load, max_num_load_retries=0)
    manager.poll()
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "broken").touch()
    manager.poll()
    manager.poll()
    assert attempts == [1, 2]
    assert "broken" in str(manager.states("m")[2].error)
    (tmp_path / "2").rename(tmp_path / "away")
    manager.poll()
    (tmp_path / "away" / "broken").unlink()
    (tmp_path / "away").rename(tmp_path / "2")
    manager.poll()
    assert attempts == [1, 2, 2]
    assert manager.states("m")[2].stage.name == "AVAILABLE"
    for version in ("1", "2"):
        (tmp_path / version).rmdir()
    manager.poll()  # with no version left, TensorFlow Serving unloads all
    assert {state.stage.name for state in manager.states("m").values()} == {"END"}


def versions_up(manager: Any, name: str = "m") -> list[int]:
    return sorted(v for v, state in manager.states(name).items() if state.stage.name == "AVAILABLE")


def test_several_models_policies_and_labels(tmp_path: Path) -> None:
    """The newest, the newest two, all, some; a label moves only to a version that is up; what is left out goes."""
    from google.protobuf import text_format
    from tensorflow_serving.apis import model_pb2
    from tensorflow_serving.config import model_server_config_pb2

    for name in ("a", "b"):
        for version in (1, 2, 3):
            (tmp_path / name / str(version)).mkdir(parents=True)
    loaded: list[FakeServable] = []

    def load(*arguments: Any) -> FakeServable:
        loaded.append(FakeServable(*arguments))
        return loaded[-1]

    manager = manager_of(tmp_path, load)

    def reload(a: str, b: str | None = "") -> None:
        text = "".join(
            f'config {{ name: "{name}" base_path: "{tmp_path / name}" model_platform: "tensorflow" {more} }}'
            for name, more in (("a", a), ("b", b))
            if more is not None
        )
        message = model_server_config_pb2.ModelServerConfig()
        manager.reload(text_format.Parse(f"model_config_list {{ {text} }}", message))

    def served(label: str) -> int:
        with manager.use(model_pb2.ModelSpec(name="a", version_label=label)) as servable:
            return int(servable.version)

    reload("")
    assert (versions_up(manager, "a"), versions_up(manager, "b")) == ([3], [3])
    assert manager.states("m") == {}  # which was there before, and never had a version
    reload("model_version_policy { latest { num_versions: 2 } }")
    assert versions_up(manager, "a") == [2, 3]
    stable = 'version_labels { key: "stable" value: %d }'
    reload("model_version_policy { all {} } " + stable % 2)
    assert versions_up(manager, "a") == [1, 2, 3]
    assert served("stable") == 2
    reload("model_version_policy { specific { versions: [1, 3] } } " + stable % 3)
    assert versions_up(manager, "a") == [1, 3]
    assert served("stable") == 3
    with pytest.raises(RequestError, match="assign label to version 2 of model a, which is not currently available"):
        reload("model_version_policy { all {} } " + stable % 2)
    assert served("stable") == 3  # a refused configuration changes nothing
    assert versions_up(manager, "a") == [1, 3]
    with pytest.raises(RequestError, match="Unrecognized servable version label: canary"):
        served("canary")
    reload("", None)
    assert (versions_up(manager, "a"), versions_up(manager, "b")) == ([3], [])
    assert [(one.name, one.version) for one in loaded if not one.closed] == [("a", 3)]


def test_version_stays_loaded_when_its_successor_fails(tmp_path: Path) -> None:
    """N is unloaded only when N+1 is up: also where N+1 is tried again and again."""
    (tmp_path / "1").mkdir()
    seen: list[list[int]] = []

    def load(*arguments: Any) -> FakeServable:
        seen.append(versions_up(manager))
        return FakeServable(*arguments)

    manager = manager_of(tmp_path, load, max_num_load_retries=2, load_retry_interval_micros=0)
    manager.poll()
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "broken").touch()
    manager.poll()
    assert seen == [[], [1], [1], [1]]  # before each attempt: the old one serves
    assert versions_up(manager) == [1]
    (tmp_path / "3").mkdir()
    manager.poll()
    assert seen[4:] == [[1]]
    assert versions_up(manager) == [3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "m"}, "Illegal to list model m multiple times"),
        ({"name": "n", "base_path": "/x", "model_platform": "onnx"}, "unsupported platform onnx"),
    ],
)
def test_refused_configurations(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    from tensorflow_serving.config import model_server_config_pb2

    manager = manager_of(tmp_path, FakeServable)
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(name="m", base_path=str(tmp_path), model_platform="tensorflow")
    config.model_config_list.config.add(**change)
    with pytest.raises(Exception, match=message):
        manager.configure(config)


@pytest.mark.parametrize(
    ("up", "wanted", "new", "action"),
    [
        (set(), {1, 2}, {1, 2}, ("load", 2)),  # the highest first
        ({1}, {2}, {2}, ("load", 2)),  # the old one serves meanwhile
        ({1, 2}, {3}, {3}, ("unload", 1)),  # the lowest of several goes at once
        ({1, 2}, {2}, set(), ("unload", 1)),
        ({1}, {2}, set(), None),  # 2 has failed
        ({1, 2}, set(), set(), ("unload", 1)),  # none of the wanted versions is on the volume
        ({2}, set(), set(), ("unload", 2)),
        ({2}, {2, 3}, {3}, ("load", 3)),
        ({2, 3}, {2, 3}, set(), None),
    ],
)
def test_next_action(up: set[int], wanted: set[int], new: set[int], action: tuple[str, int] | None) -> None:
    """The cases of TensorFlow Serving's availability_preserving_policy.cc."""
    assert next_action(up, wanted, new) == action


def test_the_lowest_of_several_unwanted_versions_is_unloaded_before_the_load(tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
    seen: list[list[int]] = []

    def load(*arguments: Any) -> FakeServable:
        seen.append(versions_up(manager))
        return FakeServable(*arguments)

    manager = manager_of(tmp_path, load)
    config = manager._models["m"].config
    config.model_version_policy.all.SetInParent()
    manager.poll()
    (tmp_path / "3").mkdir()
    config.model_version_policy.specific.versions.append(3)
    manager.poll()
    assert seen == [[], [2], [2]]  # before each load
    assert versions_up(manager) == [3]
    config.model_version_policy.specific.versions[:] = [9]
    manager.poll()
    assert versions_up(manager) == []  # a version that is not on the volume unloads the one that serves
    stages = {version: state.stage.name for version, state in manager.states("m").items()}
    assert stages == {1: "END", 2: "END", 3: "END"}
