"""TLS and mTLS to the model server, with certificates made here by openssl."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import time

import grpc
import numpy as np
import pytest
from fakes import FakeModel, ModelServer

from clothing_gateway.deadline import Deadline
from clothing_gateway.model.certificates import ServedCertificates
from clothing_gateway.model.predictor import Predictor
from clothing_gateway.settings import Settings
from processes import wait_for

PHOTO = np.zeros((8, 8, 3), np.float32)


def make_certificate(folder, name, days=2):
    """A key and a certificate that vouches for itself, for one host."""
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.crt -days {days} -subj /CN={name} "
        f"-addext subjectAltName=DNS:{name}.example".split(),
        cwd=folder,
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("server", "gateway", "stranger"):
        make_certificate(folder, name)
    return folder


@pytest.fixture
def serve(stack, certificates):
    def serve(*, mutual=False, name="server"):
        pair = ((certificates / f"{name}.key").read_bytes(), (certificates / f"{name}.crt").read_bytes())
        trusted = (certificates / "gateway.crt").read_bytes() if mutual else None
        server = ModelServer(
            FakeModel(), credentials=grpc.ssl_server_credentials([pair], trusted, require_client_auth=mutual)
        )
        stack.callback(server.stop)
        return server

    return serve


@pytest.fixture
def make(stack, certificates):
    def make(server, **files):
        settings = {"model_tls": True, "model_tls_server_name": "server.example"}
        settings |= {f"model_tls_{name}": str(certificates / file) for name, file in files.items() if "file" in name}
        settings |= {f"model_tls_{name}": text for name, text in files.items() if "file" not in name}
        predictor = Predictor(Settings(tf_serving_host=server.address, **settings))
        stack.callback(predictor.close)
        predictor.watcher.check()
        return predictor

    return make


MUTUAL = {"certificate_file": "gateway.crt", "key_file": "gateway.key"}


@pytest.mark.parametrize("mutual", [False, True])
def test_predict_over_tls(make, serve, mutual):
    predictor = make(serve(mutual=mutual), ca_file="server.crt", **(MUTUAL if mutual else {}))
    assert predictor.versions.not_ready is None
    assert predictor.predict(predictor.versions.route(), [PHOTO], Deadline.after(5)).version == 1


@pytest.mark.parametrize(
    ("mutual", "settings"),
    [
        (False, {"ca_file": "stranger.crt"}),  # another authority
        (False, {}),  # the public ones
        (False, {"ca_file": "server.crt", "server_name": "other.example"}),
        (False, {"ca_file": "server.crt", "server_name": ""}),  # 127.0.0.1 is not in the certificate
        (True, {"ca_file": "server.crt"}),  # no certificate of its own
        (True, {"ca_file": "server.crt", "certificate_file": "stranger.crt", "key_file": "stranger.key"}),
    ],
)
def test_untrusted_server_gets_no_call(make, serve, mutual, settings):
    server = serve(mutual=mutual)
    predictor = make(server, **settings)
    assert "can't be reached (UNAVAILABLE" in predictor.versions.not_ready
    assert not server.model.metadata


def test_plain_text_does_not_reach_a_tls_server(make, serve, stack):
    predictor = Predictor(Settings(tf_serving_host=serve().address))
    stack.callback(predictor.close)
    predictor.watcher.check()
    assert "can't be reached" in predictor.versions.not_ready


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ca_file": "nowhere.crt"}, ["GATEWAY_MODEL_TLS_CA_FILE", "nowhere.crt can't be read: No such file"]),
        ({"ca_file": "server.key"}, ["GATEWAY_MODEL_TLS_CA_FILE", "holds no certificates in PEM form"]),
        (
            {"certificate_file": "gateway.crt", "key_file": "stranger.key"},
            ["GATEWAY_MODEL_TLS_CERTIFICATE_FILE", "gateway.crt", "stranger.key", "no certificate and its key"],
        ),
        ({"certificate_file": "gateway.crt", "key_file": "locked.key"}, ["without a password"]),
    ],
)
def test_an_unusable_file_is_named(make, serve, certificates, settings, words):
    subprocess.run(
        "openssl rsa -aes128 -passout pass:secret -in gateway.key -out locked.key".split(),
        cwd=certificates,
        check=True,
        capture_output=True,
    )
    predictor = make(serve(), **settings)
    for word in words:
        assert word in predictor.versions.not_ready


def test_renewed_certificates_are_used_without_a_restart(make, serve, stack, certificates, tmp_path):
    for name in ("server", "gateway"):
        for end in ("crt", "key"):
            shutil.copy(certificates / f"stranger.{end}", tmp_path / f"{name}.{end}")
    files = {"ca_file": "server.crt", "certificate_file": "gateway.crt", "key_file": "gateway.key"}
    predictor = make(serve(mutual=True), **{name: tmp_path / file for name, file in files.items()})
    assert "can't be reached" in predictor.versions.not_ready
    for name in ("server", "gateway"):
        for end in ("crt", "key"):
            shutil.copy(certificates / f"{name}.{end}", tmp_path / f"{name}.{end}")
    predictor.watcher.check()
    assert predictor.versions.not_ready is None
    pool = predictor._channels._pool
    predictor.watcher.check()
    assert predictor._channels._pool is pool  # nothing has changed, so no pool is opened


def served(server, certificates, **files):
    settings = {f"model_tls_{name}": str(certificates / file) for name, file in files.items()}
    return ServedCertificates(
        Settings(tf_serving_host=server.address, model_tls=True, model_tls_server_name="server.example", **settings)
    )


@pytest.mark.parametrize("mutual", [False, True])
def test_validity_of_the_served_certificate(serve, certificates, mutual):
    found = served(serve(mutual=mutual), certificates, ca_file="server.crt", **(MUTUAL if mutual else {}))
    assert found.validity is None
    found.check()
    assert abs(found.validity.not_before - time.time()) < 300
    assert found.validity.not_after - found.validity.not_before == 2 * 86400


def test_served_certificate_is_not_the_renewed_file(serve, certificates, tmp_path):
    """A server that was not restarted: the gauge is of the old certificate, which still is verified."""
    old = serve()
    make_certificate(tmp_path, "server", days=90)
    authorities = tmp_path / "ca.crt"
    authorities.write_text((certificates / "server.crt").read_text() + (tmp_path / "server.crt").read_text())
    found = served(old, certificates, ca_file=authorities)
    found.check()
    assert found.validity.not_after == ssl_end(certificates / "server.crt")


def ssl_end(file):
    text = subprocess.run(["openssl", "x509", "-enddate", "-noout", "-in", file], check=True, capture_output=True)
    return ssl.cert_time_to_seconds(text.stdout.decode().strip().partition("=")[2])


def test_last_known_certificate_is_kept_where_no_server_answers(serve, certificates):
    server = serve()
    found = served(server, certificates, ca_file="server.crt")
    found.check()
    known = found.validity
    server.stop()
    found.check()
    assert found.validity == known


@pytest.mark.parametrize(
    ("address", "ca_file"), [(None, "stranger.crt"), ("unix:/nowhere", "server.crt"), ("127.0.0.1:none", "server.crt")]
)
def test_no_validity_without_a_verified_certificate(serve, certificates, address, ca_file):
    found = ServedCertificates(
        Settings(
            tf_serving_host=address or serve().address,
            model_tls=True,
            model_tls_ca_file=str(certificates / ca_file),
            model_tls_server_name="server.example",
        )
    )
    found.check()
    assert found.validity is None


def test_gateway_exports_the_served_certificates_end(start_gateway, serve, certificates):
    gateway = start_gateway(
        serve().address,
        model_tls="on",
        model_tls_ca_file=certificates / "server.crt",
        model_tls_server_name="server.example",
    )
    gateway.wait_ready()
    name, end = "gateway_server_certificate_not_after_timestamp_seconds", ssl_end(certificates / "server.crt")

    def exported():
        found = [one.split()[1] for one in gateway.admin("/metrics")[1].splitlines() if one.startswith(f"{name} ")]
        return [float(one) for one in found] == [end]

    wait_for("the served certificate's end", exported)
