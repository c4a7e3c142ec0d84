"""The command `doctor`: sick installations of many kinds, and what it says of each.

tests/integration/test_doctor.py asks TensorFlow itself.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address

import grpc
import pytest
from fakes import FakeModel, GatewayProcess, ModelServer, image_bytes

from clothing_gateway import __version__
from clothing_gateway.commands import cli
from clothing_gateway.commands.doctor import Question, chart, examine, network, own, report, status
from clothing_gateway.settings import Settings
from processes import free_port

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}


@pytest.fixture(autouse=True)
def no_names_of_the_internet(monkeypatch):
    """Nothing here asks a name server outside."""
    monkeypatch.setattr(own, "_OUTSIDE", "localhost")


def look(server="127.0.0.1:1", *, environment=None, admin="http://127.0.0.1:1", photo=None, **settings):
    flags = {"tf_serving_host": server} | {name: str(value) for name, value in settings.items()}
    return list(examine(Question(environment or {}, flags, admin, photo)))


def of(findings, *checks):
    """The findings of some checks that are not just fine."""
    return [finding for finding in findings if finding.check in checks and finding.state != report.OK]


def only(findings, *checks):
    (finding,) = of(findings, *checks)
    return finding


MODEL = ("dns", "connection", "tls", "model", "signature", "predict", "batch")


def test_healthy_model_server_has_no_finding(model_server):
    findings = look(model_server.address)
    assert of(findings, *MODEL) == []
    assert report.healthy(findings)
    texts = [finding.text for finding in findings if finding.check in MODEL]
    assert texts[0] == "127.0.0.1 is an address: one model server, or a load balancer"
    assert texts[2].endswith("has 'clothing-model': version 1 is AVAILABLE")
    assert "'input_8' takes float32 of 8 x 8, 'dense_7' gives 10 scores, for 10 labels" in texts[3]
    assert "(request timeout 20 s)" in texts[5]
    assert "Predict of 8 photos takes" in texts[6]


@dataclass
class Sick:
    """A model and settings that don't go together, and what is said of it."""

    check: str
    words: str
    change: str
    model: dict
    settings: dict
    state: str = report.FAIL


FLOAT, UINT8 = 1, 4
SICK = {
    "another name": Sick("model", "has no model 'other'", "model.name", {}, {"model_name": "other"}),
    "still loading": Sick(
        "model",
        "version 1 is LOADING; none is available yet",
        "server.startup.maxSeconds",
        {"statuses": ((1, 20, ""),)},
        {},
    ),
    "failed to load": Sick(
        "model", "version 1 is END (no variables)", "model.source", {"statuses": ((1, 50, "no variables"),)}, {}
    ),
    "a version failed to load": Sick(
        "model",
        "version 1 is AVAILABLE; version 2 is END (broken)",
        "model.source",
        {"statuses": ((1, 30, ""), (2, 50, "broken"))},
        {},
        report.WARNING,
    ),
    "another number of labels": Sick(
        "signature", "gives 10 scores, and GATEWAY_LABELS names 2 labels", "model.labels", {}, {"labels": "a,b"}
    ),
    "a version that is not there": Sick("signature", "version 9", "model.version", {}, {"model_version": 9}),
    "a label that is not there": Sick("signature", "label 'new'", "model.versionLabels", {}, {"model_label": "new"}),
    "a canary that is not there": Sick(
        "signature",
        "canary: ",
        "model.canary.version",
        {},
        {"model_version": 1, "canary_version": 2, "canary_percent": 5},
        report.WARNING,
    ),
    "no such signature": Sick(
        "signature", "no signature 'serve'", "model.signatureName", {}, {"signature_name": "serve"}
    ),
    "an open size": Sick(
        "signature", "leaves the size open", "model.imageSize", {"inputs": {"x": (FLOAT, (-1, -1, -1, 3))}}, {}
    ),
    "two inputs": Sick(
        "signature",
        "choose one with GATEWAY_INPUT_NAME",
        "model.inputName",
        {"inputs": {"x": (FLOAT, (-1, 8, 8, 3)), "y": (FLOAT, (-1, 8, 8, 3))}},
        {},
    ),
    "preprocessing that is not done": Sick(
        "signature",
        "'caffe' is not applied, as the model takes uint8",
        "model.preprocessing",
        {"inputs": {"x": (UINT8, (-1, 8, 8, 3))}},
        {"preprocessing": "caffe"},
        report.WARNING,
    ),
    "too slow": Sick(
        "predict",
        "every request ends in 504",
        "gateway.requestTimeoutSeconds",
        {"delay": 0.2},
        {"request_timeout_seconds": 0.1},
    ),
    "nearly too slow": Sick(
        "predict",
        "includes fetch, decode and queue",
        "gateway.requestTimeoutSeconds",
        {"delay": 0.25},
        {"request_timeout_seconds": 0.45},
        report.WARNING,
    ),
    "broken scores": Sick(
        "signature", "not finite", "model", {"scores": lambda batch: [[float("nan")] * 10 for _ in batch]}, {}
    ),
    "out of memory": Sick(
        "predict",
        "OOM when allocating",
        "server.resources.limits.memory",
        {"fail": [(grpc.StatusCode.RESOURCE_EXHAUSTED, "OOM when allocating tensor")]},
        {},
    ),
}


@pytest.mark.parametrize("sick", SICK.values(), ids=SICK)
def test_faults_are_reported_with_the_value_to_change(stack, sick):
    server = ModelServer(FakeModel(**sick.model))
    stack.callback(server.stop)
    findings = look(server.address, **sick.settings)
    found = of(findings, sick.check)[0]
    assert (found.state, report.healthy(findings)) == (sick.state, sick.state == report.WARNING)
    assert sick.words in found.text
    assert sick.change in found.change
    assert ("model.versionLabels" in found.change) == ("versionLabel" in sick.change)
    assert [finding for finding in findings if "this check failed" in finding.text] == []


def test_model_status_is_parsed_as_tensorflow_serving_prints_it():
    """By the numbers of get_model_status.proto: the newest version first, END (50) with a code and words."""
    words = b"no SavedModel"
    failed = b"\x08\x02\x10\x32\x1a" + bytes([len(words) + 4]) + b"\x08\x09\x12" + bytes([len(words)]) + words
    wire = b"\x0a" + bytes([len(failed)]) + failed + b"\x0a\x06\x08\x01\x10\x1e\x1a\x00"
    first, second = status.message_class().FromString(wire).model_version_status
    assert (first.version, status.STATES[first.state], first.status.error_message) == (2, "END", words.decode())
    assert (second.version, status.STATES[second.state], second.status.error_message) == (1, "AVAILABLE", "")


def test_a_batch_that_is_too_large(stack):
    refuse = (grpc.StatusCode.INVALID_ARGUMENT, "Task size 8 was larger than maximum input batch size 4")
    model = FakeModel()
    server = ModelServer(model)
    stack.callback(server.stop)
    predict = model.Predict
    model.Predict = lambda request, context: (
        context.abort(*refuse) if request.inputs["input_8"].tensor_shape.dim[0].size > 4 else predict(request, context)
    )
    server = ModelServer(model)
    stack.callback(server.stop)
    found = only(look(server.address), *MODEL)
    assert (found.check, found.state) == ("batch", report.FAIL)
    assert "refuses a batch of 8 photos" in found.text
    assert found.change == "gateway.predictBatchSize, at most server.batching.maxBatchSize"
    assert of(look(server.address, predict_batch_size=4), *MODEL) == []


def test_a_first_call_that_is_slow(model_server, monkeypatch):
    monkeypatch.setattr("clothing_gateway.commands.doctor.model._COLD_SECONDS", 0.2)
    model = model_server.model

    def scores(batch):
        time.sleep(waits.pop() if waits else 0)
        return model._echo(batch)

    waits, model.scores = [0.5], scores
    found = only(look(model_server.address), *MODEL)
    assert (found.check, found.state) == ("predict", report.WARNING)
    assert found.change.startswith("server.flags.enable_model_warmup")


def test_a_server_without_a_free_thread(stack, monkeypatch):
    monkeypatch.setattr("clothing_gateway.commands.doctor.model._STATUS_SECONDS", 0.3)
    server = ModelServer(FakeModel(), threads=2)
    stack.callback(server.stop)
    server.threads.free.acquire()
    found = only(look(server.address), "model")
    assert found.state == report.FAIL
    assert "all its gRPC threads are busy" in found.text
    assert "server.flags.grpc_max_threads" in found.change
    # One that is free again soon is waited for.
    monkeypatch.setattr("clothing_gateway.commands.doctor.model._STATUS_SECONDS", 10)
    threading.Timer(0.5, server.threads.free.release).start()
    assert of(look(server.address), *MODEL) == []


def test_a_server_whose_threads_are_busy_for_predict(stack):
    model = FakeModel(fail=[(grpc.StatusCode.RESOURCE_EXHAUSTED, "")] * 1000)
    server = ModelServer(model)
    stack.callback(server.stop)
    found = of(look(server.address), "predict")[0]
    assert found.state == report.FAIL
    assert "server.flags.grpc_max_threads" in found.change


def test_unreachable_server_is_reported():
    findings = look(f"127.0.0.1:{free_port()}")
    found = of(findings, "connection")[0]
    assert "Connection refused. A model server listens only once it has loaded a model" in found.text
    assert "server.startup.maxSeconds" in found.change
    assert {finding.check for finding in findings if finding.state == report.SKIPPED} >= {
        "model",
        "signature",
        "predict",
    }


def test_unresolvable_name_is_reported(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", refuse_names(socket.EAI_NONAME))
    found = of(look("dns:///demo-server-headless:8500"), "dns")[0]
    assert "demo-server-headless has no address: no model server is ready" in found.text
    assert "server.startup.maxSeconds" in found.change
    assert "TF_SERVING_HOST in gateway.extraEnv" in found.change
    monkeypatch.setattr(socket, "getaddrinfo", refuse_names(socket.EAI_AGAIN))
    found = of(look("dns:///demo-server-headless:8500"), "dns")[0]
    assert "no DNS server answered" in found.text
    assert "networkPolicy.dns.to" in found.change


def refuse_names(number):
    def getaddrinfo(*_, **__):
        raise socket.gaierror(number, "told to fail")

    return getaddrinfo


def lead(monkeypatch, name, *addresses):
    """Let a name lead to these addresses."""
    real = socket.getaddrinfo

    def getaddrinfo(host, port, *rest, **options):
        if host != name:
            return real(host, port, *rest, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_each_server_of_a_headless_service_is_checked(monkeypatch, stack):
    port = free_port()
    for host, versions in (("127.0.0.1", ()), ("127.0.0.2", (2,))):
        stack.callback(ModelServer(FakeModel(others=versions), port, host=host).stop)
    lead(monkeypatch, "demo-server-headless", "127.0.0.1", "127.0.0.2", "127.0.0.3")
    findings = look(f"dns:///demo-server-headless:{port}")
    assert "has 3 addresses: 127.0.0.1, 127.0.0.2, 127.0.0.3" in findings[1].text
    # A pod that has ended is still in DNS, and no reason to worry.
    gone = only(findings, "connection")
    assert (gone.state, gone.text.partition(":")[0]) == (report.WARNING, "127.0.0.3")
    different = only(findings, "model")
    assert different.state == report.WARNING
    assert f"127.0.0.1:{port}: 1; 127.0.0.2:{port}: 1, 2" in different.text
    assert len([finding for finding in findings if finding.check == "predict"]) == 2


def test_cluster_ip_and_pod_address_are_distinguished(monkeypatch, model_server):
    lead(monkeypatch, "demo-server", "127.0.0.1")
    port = model_server.address.rpartition(":")[2]
    names = {"127.0.0.1": ("demo-server.photos.svc.cluster.local", [], [])}
    monkeypatch.setattr(socket, "gethostbyaddr", names.__getitem__)
    found = only(look(f"demo-server:{port}", environment=POD), "dns")
    assert found.state == report.WARNING
    assert "uses one model server only" in found.text
    names["127.0.0.1"] = ("127-0-0-1.demo-server.photos.svc.cluster.local", [], [])
    assert of(look(f"demo-server:{port}", environment=POD), "dns") == []


def test_grpc_server_without_predict_is_reported(stack):
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    stack.callback(lambda: server.stop(0).wait())
    found = of(look(f"127.0.0.1:{port}"), "model")[0]
    assert "speaks gRPC, but not TensorFlow Serving" in found.text


def test_the_rest_port_is_no_grpc_port(photo_server):
    found = of(look(f"127.0.0.1:{photo_server.port}"), "model")[0]
    assert "is it a gRPC port?" in found.text
    assert "the gRPC port is 8500" in found.change


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Certificates that vouch for themselves, for server.example; one of them has expired, and one soon will."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(command):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)

    new = (
        "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=a -addext subjectAltName=DNS:server.example"
    )
    for name, days in (("server", 90), ("stranger", 90), ("soon", 2)):
        openssl(f"req -x509 {new} -keyout {name}.key -out {name}.crt -days {days}")
    openssl(f"req {new} -keyout past.key -out past.csr")
    openssl("x509 -req -in past.csr -signkey past.key -out past.crt -days -1 -copy_extensions copy")
    return folder


@pytest.fixture
def serve_tls(stack, certificates):
    def serve(name="server", *, mutual=False):
        pair = ((certificates / f"{name}.key").read_bytes(), (certificates / f"{name}.crt").read_bytes())
        trusted = (certificates / "stranger.crt").read_bytes() if mutual else None
        credentials = grpc.ssl_server_credentials([pair], trusted, require_client_auth=mutual)
        server = ModelServer(FakeModel(), credentials=credentials)
        stack.callback(server.stop)
        return server.address

    return serve


@pytest.mark.parametrize(
    ("server", "settings", "state", "words", "change"),
    [
        ("server", {}, report.OK, "is for 'server.example', valid for", ""),
        ("soon", {"ca_file": "soon"}, report.WARNING, "valid for", "server.tls.certManager.renewBefore"),
        ("past", {"ca_file": "past"}, report.FAIL, "has expired", "renew the Secret of server.tls.secretName"),
        ("server", {"ca_file": "stranger"}, report.FAIL, "not the one in ca.crt", "gateway.serverTls.secretName"),
        ("server", {"server_name": "other"}, report.FAIL, "is for other names", "gateway.serverTls.serverName"),
        ("mutual", {}, report.FAIL, "requires a client certificate (mTLS), and gets none", "gateway.serverTls.mutual"),
        (
            "mutual",
            {"certificate_file": "server", "key_file": "server"},
            report.FAIL,
            "requires a client certificate (mTLS), and rejects this one",
            "gateway.serverTls.mutual",
        ),
        ("mutual", {"certificate_file": "stranger", "key_file": "stranger"}, report.OK, "is for 'server.example'", ""),
        ("plain", {}, report.FAIL, "speaks no TLS, and the gateway does", "server.tls.secretName"),
        ("server", {"ca_file": "nowhere"}, report.FAIL, "can't be read", "gateway.serverTls.secretName"),
    ],
)
def test_tls(serve_tls, certificates, model_server, server, settings, state, words, change):
    mutual = server == "mutual"
    address = model_server.address if server == "plain" else serve_tls("server" if mutual else server, mutual=mutual)
    given = {"server_name": "server.example", "ca_file": "server"} | settings
    files = {
        f"model_tls_{name}": str(certificates / f"{value}.{'key' if name == 'key_file' else 'crt'}")
        if name.endswith("file")
        else value
        for name, value in given.items()
    }
    findings = look(address, model_tls="on", **files)
    (found,) = [finding for finding in findings if finding.check == "tls"]
    assert found.state == state
    assert words in found.text
    assert change in found.change
    assert (of(findings, *MODEL) == []) == (state == report.OK)


def test_a_tls_server_and_a_gateway_without_tls(serve_tls):
    found = of(look(serve_tls()), "model")[0]
    assert "speaks TLS, and the gateway does not" in found.text
    assert "gateway.serverTls.secretName" in found.change


def test_all_invalid_settings_are_reported():
    findings = look(labels="a,a", fetch_allowed_ports="http", max_photos=100)
    assert [(finding.check, finding.state) for finding in findings] == [("settings", report.FAIL)] * 2
    assert {finding.change for finding in findings} == {"model.labels", "gateway.fetch.allowedPorts"}
    (finding,) = look(max_photos=100)
    assert finding.change == "gateway.maxPhotos, gateway.maxInFlight"


def test_contradictory_settings():
    findings = look(
        environment={"GATEWAY_LABLES": "a"}, fetch_timeout_seconds=20, drain_timeout_seconds=5, model_check_seconds=1
    )
    unknown, fetching, draining = of(findings, "settings")
    assert unknown.text.startswith("GATEWAY_LABLES is not a setting")
    assert "gateway.fetch.timeoutSeconds" in fetching.change
    assert "waits 5 s for requests that may take 20 s" in draining.text
    assert all(finding.state == report.WARNING for finding in (unknown, fetching, draining))


def test_keys(tmp_path):
    keys = tmp_path / "keys"
    found = only(look(keys_file=keys), "keys")
    assert "can't be read" in found.text
    assert found.change.startswith("gateway.keys.secretName")
    keys.write_text("mine 0123456789abcdef\n")
    assert of(look(keys_file=keys), "keys") == []


def test_the_gateways_own_metrics_and_readiness(model_server, start_gateway):
    gateway = start_gateway(model_server.address, max_in_flight=1, max_photos=1)
    admin = f"http://127.0.0.1:{gateway.admin_port}"
    photo = image_bytes()
    for _ in range(20):
        assert gateway.post("/predict", photo)[0] == 200
    findings = look(model_server.address, admin=admin)
    assert of(findings, "gateway", "metrics") == []
    (counted,) = [finding for finding in findings if finding.check == "metrics"]
    assert counted.text == "20 photo requests since start; errors: none"
    model_server.model.fail = [grpc.StatusCode.INTERNAL] * 2
    for _ in range(2):
        assert gateway.post("/predict", photo)[0] == 502
    found = only(look(model_server.address, admin=admin), "metrics")
    assert (found.state, found.change) == (report.WARNING, "for model-failed: server.resources.limits.memory")
    assert f"{__version__}" not in found.text


def test_unready_gateway_states_its_reason(model_server, start_gateway):
    gateway = start_gateway(model_server.address, wait_ready=False, labels="a,b")
    admin = f"http://127.0.0.1:{gateway.admin_port}"
    found = None
    while found is None or "not been asked yet" in found.text:
        found = only(look(model_server.address, admin=admin), "gateway")
    assert "gateway reports not ready: " in found.text
    assert (found.state, found.change) == (report.FAIL, "model.labels")


def test_unreachable_admin_port_is_reported(photo_server):
    nothing = f"http://127.0.0.1:{free_port()}"
    assert only(look(admin=nothing), "gateway").state == report.SKIPPED  # a laptop without port-forward
    found = only(look(admin=nothing, environment=POD), "gateway")
    assert found.state == report.FAIL
    assert "gateway.resources.limits.cpu" in found.change
    found = only(look(admin=photo_server.url), "gateway")
    assert "is not a gateway's admin port" in found.text


@pytest.mark.parametrize(
    ("networks", "words"),
    [
        ("0.0.0.0/0", "every private address"),
        ("10.0.0.0/8,::/0", "every private address"),
        ("169.254.169.254/32", "metadata server, which hands out"),
        ("10.0.0.0/8", None),
        ("169.254.0.0/16", None),
    ],
)
def test_allowed_private_networks_are_reported(networks, words):
    findings = of(look(fetch_allowed_networks=networks), "fetch")
    assert (words is None) == (findings == [])
    if words:
        assert words in findings[0].text
        assert findings[0].change.startswith("gateway.fetch.allowedNetworks")


def test_a_photo_is_fetched_as_the_gateway_would(photo_server):
    photo_server.paths["/photo.jpg"] = image_bytes()
    url = f"{photo_server.url}/photo.jpg"
    opened = {"fetch_allowed_networks": "127.0.0.0/8", "fetch_allowed_ports": photo_server.port}
    assert of(look(photo=url, **opened), "fetch") == []
    found = only(look(photo=url), "fetch")
    assert "is not among GATEWAY_FETCH_ALLOWED_PORTS" in found.text  # which no client is told
    assert found.change == "gateway.fetch.allowedPorts"
    found = only(look(photo=url, fetch_allowed_ports=photo_server.port), "fetch")
    assert "127.0.0.0/8" in found.text
    assert found.change.startswith("gateway.fetch.allowedNetworks")
    found = only(look(photo=f"{photo_server.url}/no.jpg", **opened), "fetch")
    assert "424 photo-server-failed" in found.text


def test_reachability_of_photo_servers(monkeypatch):
    found = only(look(fetch_proxy=f"http://127.0.0.1:{free_port()}"), "fetch")
    assert (found.state, found.change.partition(";")[0]) == (report.FAIL, "gateway.fetch.proxy")
    findings = look(fetch_allowed_hosts="localhost,*.example.com,nowhere.invalid")
    assert only(findings, "fetch").text.startswith("nowhere.invalid: ")
    monkeypatch.setattr(own, "_OUTSIDE", "nowhere.invalid")
    found = only(look(), "fetch")
    assert found.state == report.WARNING
    assert "nothing in an air-gapped cluster" in found.change


@pytest.fixture
def cgroup(tmp_path):
    """The files of a container, as the kernel writes them."""
    files = {
        "memory.max": f"{1 << 30}\n",
        "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n",
        "cpu.max": "max 100000\n",
        "cpu.stat": "usage_usec 100\nnr_periods 1000\nnr_throttled 20\nthrottled_usec 3\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "text", "check", "words", "change"),
    [
        ("cpu.max", "max 100000\n", None, "", ""),
        ("memory.max", "max\n", None, "", ""),
        ("memory.max", f"{256 << 20}\n", "memory", "has 256 MiB of memory", "gateway.resources.limits.memory"),
        ("memory.events", "oom_kill 3\n", "memory", "3 OOM kills", "gateway.resources.limits.memory"),
        ("cpu.stat", "nr_periods 1000\nnr_throttled 200\n", "cpu", "in 20 %", "gateway.resources.limits.cpu"),
        (
            "cpu.max",
            "50000 100000\n",
            "cpu",
            "2 decode slots on 1 cores",
            "GATEWAY_DECODE_SLOTS in gateway.extraEnv",
        ),
    ],
)
def test_limits(cgroup, file, text, check, words, change):
    (cgroup / file).write_text(text)
    settings = Settings(decode_slots=2, decode_memory_bytes=256 << 20)
    findings = [finding for finding in own.limits(settings, in_pod=True, cgroup=cgroup) if finding.state != report.OK]
    if check is None:
        assert [finding for finding in findings if finding.check == "memory"] == []
        return
    (found,) = [finding for finding in findings if finding.check == check]
    assert words in found.text
    assert change in found.change
    (skipped,) = own.limits(settings, in_pod=False, cgroup=cgroup)
    assert skipped.state == report.SKIPPED


def test_exception_in_a_check_is_a_finding(monkeypatch, model_server):
    def broken(*_, **__):
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(own, "admin_port", broken)
    findings = look(model_server.address)
    (found,) = [finding for finding in findings if "check failed: RuntimeError: unforeseen" in finding.text]
    assert found.state == report.FAIL
    assert findings[-1].check == "memory"


def test_public_pod_addresses_are_warned_of_unless_denied(monkeypatch):
    assert all(not address.is_unspecified for address in own._own_addresses())
    addresses = [ip_address("10.1.2.3"), ip_address("2600:1f18::7"), ip_address("11.0.0.9")]
    monkeypatch.setattr(own, "_own_addresses", lambda: addresses)
    findings = of(look(environment=POD), "fetch")
    assert [found.state for found in findings] == [report.WARNING] * 2
    assert "2600:1f18::7 is a public one" in findings[0].text
    assert findings[0].change.startswith("gateway.fetch.deniedNetworks")
    assert of(look(environment=POD, fetch_denied_networks="11.0.0.0/8,2600:1f18::/36"), "fetch") == []
    assert of(look(), "fetch") == []  # on a laptop it is none of the cluster's


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["/opt/gateway/bin/python", "/opt/gateway/bin/clothing-gateway", "serve", "--top", "1"], ["--top", "1"]),
        (["clothing-gateway", "serve"], []),
        (["python", "-m", "clothing_gateway", "serve", "--labels=a,b"], ["--labels=a,b"]),
        (["/pause"], []),
        (["nginx", "serve", "--labels=a"], []),
    ],
)
def test_the_flags_of_the_gateway_in_the_container(tmp_path, words, flags):
    file = tmp_path / "cmdline"
    file.write_bytes(b"".join(word.encode() + b"\0" for word in words))
    assert own.flags_of_the_gateway(file) == flags
    assert own.flags_of_the_gateway(tmp_path / "nowhere") == []


def test_findings_name_values_in_place_of_variables():
    text = "set GATEWAY_LABELS, GATEWAY_LABELS, GATEWAY_DECODE_SLOTS or --fetch-proxy; GATEWAY_NO is none"
    assert chart.values_for(text) == "model.labels, GATEWAY_DECODE_SLOTS in gateway.extraEnv, gateway.fetch.proxy"


def run(*arguments, **environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "TF_SERVING"))}
    return subprocess.run(
        [sys.executable, "-m", "clothing_gateway", "doctor", *map(str, arguments)],
        env=inherited | {"HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"} | environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_doctor_command_prints_findings_and_exits(model_server, stack):
    gateway = GatewayProcess(model_server.address)
    stack.callback(gateway.stop)
    environment = {"TF_SERVING_HOST": model_server.address, "GATEWAY_ADMIN_LISTEN_PORT": str(gateway.admin_port), **POD}
    done = run(**environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "FAIL" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("healthy, ")
    done = run("--json", "--model-name", "other", **environment)
    assert (done.returncode, done.stderr) == (1, "")
    answer = json.loads(done.stdout)
    assert answer["healthy"] is False
    (failed,) = [check for check in answer["checks"] if check["state"] == "fail"]
    assert failed["check"] == "model"
    assert failed["change"].startswith("model.name")


def test_doctor_exits_with_1_for_invalid_settings_and_2_for_a_usage_error(capsys):
    assert cli.main(["doctor", "--labels", "a,a", "--tf-serving-host", "nowhere"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "2 FAIL, 0 warnings"
    with pytest.raises(SystemExit, match="2"):
        cli.main(["doctor", "--nothing"])


def test_every_wait_has_a_timeout():
    start = time.monotonic()
    assert network._within(0.1, lambda: time.sleep(2)) is None
    assert time.monotonic() - start < 1.5
