from __future__ import annotations

import dataclasses
import re
from ipaddress import ip_network

import pytest

from clothing_contract import Input, Output
from clothing_gateway.limits import cgroup
from clothing_gateway.settings import ROWS, Settings, SettingsError


def load(environment=None, **flags):
    return Settings.load(environment or {}, flags)[0]


def problems(environment=None, **flags):
    with pytest.raises(SettingsError) as caught:
        Settings.load(environment or {}, flags)
    return caught.value.problems


def test_defaults_are_the_courses():
    settings = load()
    assert settings.tf_serving_host == "localhost:8500"
    assert settings.listen_port == 9696
    assert settings.model_name == "clothing-model"
    assert settings.preprocessing == "tf"
    assert settings.request_timeout_seconds == 20
    assert settings.labels[0] == "dress"
    assert len(settings.labels) == 10
    assert settings == Settings()


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load().listen_port = 1


def test_flags_override_the_environment_which_overrides_defaults():
    environment = {"GATEWAY_MODEL_NAME": "from-environment", "GATEWAY_LISTEN_PORT": "1000"}
    settings, sources, _ = Settings.load(environment, {"model_name": "from-flag"})
    assert (settings.model_name, settings.listen_port, settings.admin_listen_port) == ("from-flag", 1000, 9697)
    assert (sources["model_name"], sources["listen_port"], sources["admin_listen_port"]) == (
        "flag",
        "environment",
        "default",
    )


def test_empty_value_means_unset():
    environment = {"GATEWAY_MODEL_NAME": "", "GATEWAY_MODEL_VERSION": "", "TF_SERVING_HOST": "", "GATEWAY_LABELS": ""}
    assert load(environment) == load()
    assert load({"GATEWAY_MODEL_NAME": "a"}, model_name="").model_name == "a"


def test_all_errors_are_reported_at_once():
    found = problems(
        {
            "TF_SERVING_HOST": "nowhere",
            "GATEWAY_LISTEN_PORT": "70000",
            "GATEWAY_LABELS": "a,b,a",
            "GATEWAY_PREPROCESSING": "magic",
            "GATEWAY_REQUEST_TIMEOUT_SECONDS": "soon",
            "GATEWAY_FETCH_ALLOWED_NETWORKS": "10.0.0.1/8",
        },
        model_version="newest",
    )
    assert len(found) == 7
    for name in ("TF_SERVING_HOST", "GATEWAY_LISTEN_PORT", "--model-version", "GATEWAY_FETCH_ALLOWED_NETWORKS"):
        assert any(problem.startswith(f"{name}=") for problem in found), name


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("TF_SERVING_HOST", "model.default.svc.cluster.local:8500", "model.default.svc.cluster.local:8500"),
        ("TF_SERVING_HOST", "[::1]:8500", "[::1]:8500"),
        ("TF_SERVING_HOST", "dns:///model:8500", "dns:///model:8500"),
        ("TF_SERVING_HOST", "unix:/run/model.sock", "unix:/run/model.sock"),
        ("GATEWAY_MODEL_VERSION", "3", 3),
        ("GATEWAY_MODEL_TLS", "On", True),
        ("GATEWAY_RESAMPLING", "Bilinear", "bilinear"),
        ("GATEWAY_JPEG_SCALING", "on", True),
        ("GATEWAY_MODEL_LABEL", "stable", "stable"),
        ("GATEWAY_SELECTABLE_VERSIONS", "2, next", ("2", "next")),
        ("GATEWAY_IMAGE_SIZE", "299", (299, 299)),
        ("GATEWAY_IMAGE_SIZE", "320x240", (320, 240)),
        ("GATEWAY_LABELS", "a, b ,c", ("a", "b", "c")),
        ("GATEWAY_LABELS", '["a, b", "c"]', ("a, b", "c")),
        ("GATEWAY_LABELS", "only", ("only",)),
        ("GATEWAY_PREPROCESSING", "Caffe", "caffe"),
        ("GATEWAY_LOG_LEVEL", "DEBUG", "debug"),
        ("GATEWAY_FETCH_ALLOWED_PORTS", "80, 8080", frozenset({80, 8080})),
        ("GATEWAY_FETCH_ALLOWED_NETWORKS", "10.0.0.0/8, fd00::/8", (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))),
        ("GATEWAY_FETCH_ALLOWED_NETWORKS", "10.1.2.3", (ip_network("10.1.2.3/32"),)),
        ("GATEWAY_FETCH_ALLOWED_HOSTS", "Example.com., *.photos.example", ("example.com", "*.photos.example")),
        ("GATEWAY_FETCH_DENIED_HOSTS", "93.184.215.14,2606:2800::1", ("93.184.215.14", "2606:2800::1")),
        ("GATEWAY_RATE_PHOTOS_PER_MINUTE", "0.5", 0.5),
        ("GATEWAY_FETCH_USER_AGENT", "shop/1.0 (+https://shop.example)", "shop/1.0 (+https://shop.example)"),
        ("GATEWAY_TRUSTED_PROXIES", "10.0.0.0/8", (ip_network("10.0.0.0/8"),)),
        ("GATEWAY_FETCH_PROXY", "http://proxy.egress:3128", ("proxy.egress", 3128)),
        ("GATEWAY_FETCH_PROXY", "http://[fd00::1]:3128", ("fd00::1", 3128)),
        ("GATEWAY_DRAIN_DELAY_SECONDS", "0.5", 0.5),
        ("GATEWAY_DECODE_SLOTS", "3", 3),
    ],
)
def test_valid_values_are_parsed(variable, text, value):
    settings = load({variable: text})
    (row,) = [row for row in ROWS if row.variable == variable]
    assert getattr(settings, row.name) == value
    # What --print-config shows is understood again.
    assert load({variable: row.kind.show(value)}) == settings


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("TF_SERVING_HOST", "model"),
        ("TF_SERVING_HOST", ":8500"),
        ("TF_SERVING_HOST", "model:0"),
        ("TF_SERVING_HOST", "model:port"),
        ("TF_SERVING_HOST", "::1:8500"),
        ("TF_SERVING_HOST", "http://model:8500"),
        ("GATEWAY_LISTEN_PORT", "-1"),
        ("GATEWAY_LISTEN_PORT", "http"),
        ("GATEWAY_MODEL_NAME", "a/b"),
        ("GATEWAY_MODEL_NAME", "a b"),
        ("GATEWAY_MODEL_VERSION", "-1"),
        ("GATEWAY_MODEL_VERSION", "latest"),
        ("GATEWAY_MODEL_TLS", "yes"),
        ("GATEWAY_RESAMPLING", "sharp"),
        ("GATEWAY_MODEL_LABEL", "7"),
        ("GATEWAY_MODEL_LABEL", "a b"),
        ("GATEWAY_CANARY_VERSION", "next"),
        ("GATEWAY_CANARY_PERCENT", "101"),
        ("GATEWAY_CANARY_PERCENT", "-1"),
        ("GATEWAY_CANARY_PERCENT", "nan"),
        ("GATEWAY_CANARY_PERCENT", "10%"),
        ("GATEWAY_CANARY_PERCENT", "10"),
        ("GATEWAY_SELECTABLE_VERSIONS", "1,,2"),
        ("GATEWAY_SELECTABLE_VERSIONS", "1,2,3,4,5,6,7,8,9"),
        ("GATEWAY_SELECTABLE_VERSIONS", "a b"),
        ("GATEWAY_IMAGE_SIZE", "0"),
        ("GATEWAY_IMAGE_SIZE", "299x0"),
        ("GATEWAY_IMAGE_SIZE", "299x299x3"),
        ("GATEWAY_LABELS", "a,,b"),
        ("GATEWAY_LABELS", "["),
        ("GATEWAY_LABELS", "[1, 2]"),
        ("GATEWAY_LABELS", "[]"),
        ("GATEWAY_REQUEST_TIMEOUT_SECONDS", "0"),
        ("GATEWAY_REQUEST_TIMEOUT_SECONDS", "nan"),
        ("GATEWAY_REQUEST_TIMEOUT_SECONDS", "inf"),
        ("GATEWAY_FETCH_ALLOWED_PORTS", "80,,443"),
        ("GATEWAY_FETCH_ALLOWED_NETWORKS", "everything"),
        ("GATEWAY_FETCH_ALLOWED_HOSTS", "http://example.com"),
        ("GATEWAY_FETCH_ALLOWED_HOSTS", "*"),
        ("GATEWAY_FETCH_ALLOWED_HOSTS", "a.*.com"),
        ("GATEWAY_FETCH_ALLOWED_HOSTS", "a,,b"),
        ("GATEWAY_FETCH_DENIED_HOSTS", "bücher.example"),
        ("GATEWAY_FETCH_DENIED_HOSTS", "a..b"),
        ("GATEWAY_FETCH_DENIED_HOSTS", "2606:2800:0::1"),
        ("GATEWAY_RATE_PHOTOS_PER_MINUTE", "-1"),
        ("GATEWAY_FETCH_USER_AGENT", "shop\r\nX: y"),
        ("GATEWAY_FETCH_USER_AGENT", "bücher/1.0"),
        ("GATEWAY_RATE_PHOTOS_PER_MINUTE", "nan"),
        ("GATEWAY_RATE_BURST_PHOTOS", "0"),
        ("GATEWAY_TRUSTED_PROXIES", "ingress"),
        ("GATEWAY_FETCH_PROXY", "proxy:3128"),
        ("GATEWAY_FETCH_PROXY", "https://proxy:3128"),
        ("GATEWAY_FETCH_PROXY", "http://user:password@proxy:3128"),
        ("GATEWAY_FETCH_PROXY", "http://proxy"),
        ("GATEWAY_MAX_IN_FLIGHT", "0"),
        ("GATEWAY_LOG_LEVEL", "loud"),
    ],
)
def test_invalid_values_are_rejected(variable, text):
    assert len(problems({variable: text})) == 1


def test_contradictions_name_both_settings():
    (found,) = problems({"GATEWAY_LISTEN_PORT": "9000", "GATEWAY_ADMIN_LISTEN_PORT": "9000"})
    assert "GATEWAY_LISTEN_PORT" in found
    assert "GATEWAY_ADMIN_LISTEN_PORT" in found
    (found,) = problems({"GATEWAY_MAX_PHOTOS": "40"})
    assert "GATEWAY_MAX_IN_FLIGHT" in found
    assert len(problems({"GATEWAY_MAX_BUFFERED_BYTES": "2000"})) == 2
    (found,) = problems({"GATEWAY_RATE_PHOTOS_PER_MINUTE": "60", "GATEWAY_RATE_BURST_PHOTOS": "4"})
    assert "GATEWAY_MAX_PHOTOS" in found
    (found,) = problems({"GATEWAY_MODEL_TLS_CA_FILE": "/ca.pem"})
    assert "GATEWAY_MODEL_TLS=on" in found
    (found,) = problems({"GATEWAY_MODEL_TLS": "on", "GATEWAY_MODEL_TLS_KEY_FILE": "/key.pem"})
    assert "GATEWAY_MODEL_TLS_CERTIFICATE_FILE" in found
    (found,) = problems({"GATEWAY_MODEL_VERSION": "1", "GATEWAY_MODEL_LABEL": "stable"})
    assert "GATEWAY_MODEL_LABEL" in found
    (found,) = problems({"GATEWAY_CANARY_VERSION": "2", "GATEWAY_CANARY_PERCENT": "5"})
    assert "GATEWAY_MODEL_VERSION or GATEWAY_MODEL_LABEL" in found
    (found,) = problems({"GATEWAY_CANARY_VERSION": "2", "GATEWAY_MODEL_VERSION": "2"})
    assert "the canary is the stable version" in found
    assert load({"GATEWAY_CANARY_LABEL": "next", "GATEWAY_MODEL_VERSION": "1"}).canary_percent == 0
    assert load({"GATEWAY_LISTEN_PORT": "0", "GATEWAY_ADMIN_LISTEN_PORT": "0"}).listen_port == 0


def test_unknown_variables_are_warned_of_and_service_links_are_not():
    _, _, warnings = Settings.load(
        {
            "GATEWAY_MODLE_NAME": "x",
            "GATEWAY_MODEL_NAME": "x",
            "PATH": "/bin",
            # what Kubernetes sets for Services named "gateway" and "gateway-admin"
            "GATEWAY_PORT": "tcp://10.96.0.9:80",
            "GATEWAY_SERVICE_HOST": "10.96.0.9",
            "GATEWAY_SERVICE_PORT": "80",
            "GATEWAY_SERVICE_PORT_HTTP": "80",
            "GATEWAY_PORT_80_TCP": "tcp://10.96.0.9:80",
            "GATEWAY_PORT_80_TCP_PROTO": "tcp",
            "GATEWAY_PORT_80_TCP_PORT": "80",
            "GATEWAY_PORT_80_TCP_ADDR": "10.96.0.9",
            "GATEWAY_ADMIN_SERVICE_HOST": "10.96.0.9",
            "GATEWAY_ADMIN_PORT": "tcp://10.96.0.9:80",
        }
    )
    assert len(warnings) == 1
    assert "GATEWAY_MODLE_NAME" in warnings[0]


def test_flags_are_named_after_variables():
    flags = {row.variable: row.flag for row in ROWS}
    assert flags["GATEWAY_MODEL_NAME"] == "--model-name"
    assert flags["TF_SERVING_HOST"] == "--tf-serving-host"


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", None), ("50000 100000", 1), ("100000 100000", 1), ("nonsense", None), (None, None)],
)
def test_cores_are_those_of_the_container(text, cores, tmp_path):
    file = tmp_path / "cpu.max"
    if text is not None:
        file.write_text(text)
    assert cgroup.available_cores(file) == (cores or cgroup.available_cores(tmp_path / "none"))
    assert load().decode_slots == cgroup.available_cores()


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (
            "http://localhost:8500",
            "must be HOST:PORT of gRPC, no URL: leave out the scheme http://, as in localhost:8500",
        ),
        ("https://model:8501/", "must be HOST:PORT of gRPC, no URL: leave out the scheme https://, as in model:8501"),
        ("grpc://[::1]:8500", "must be HOST:PORT of gRPC, no URL: leave out the scheme grpc://, as in [::1]:8500"),
        ("http://", "must be HOST:PORT of gRPC, no URL: leave out the scheme http://, as in localhost:8500"),
    ],
)
def test_url_of_the_model_server_is_named(given, advice):
    with pytest.raises(SettingsError, match=re.escape(advice)):
        load({"TF_SERVING_HOST": given})


def test_the_contract_is_the_settings_of_its_names():
    settings = load(preprocessing="rescale", std="0.5", fit="pad")
    assert settings.input == Input(preprocessing="rescale", std=(0.5,), fit="pad")
    assert settings.input is settings.input
    (problem,) = problems(mean="1")
    assert problem.startswith("GATEWAY_PREPROCESSING: mean and std belong to")


def test_a_threshold_is_for_labels_with_a_probability_of_their_own():
    assert load(scores="independent", threshold="0.3").output == Output(scores="independent", threshold=0.3)
    assert load().output == Output()
    for given, words in (
        ({"scores": "softmax", "threshold": "0.3"}, "leave it out"),
        ({"threshold": "1"}, "below 1"),
        ({"threshold": "2"}, "at most 1"),
        ({"threshold": "half"}, "must be a number"),
    ):
        (problem,) = problems(**given)
        assert words in problem
