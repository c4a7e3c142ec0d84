"""Certificates of a company's authority, verified alike by every Python: by effect, on TLS servers."""

from __future__ import annotations

import hashlib
import socket
import ssl
import subprocess

import pytest
import urllib3.connection
from fakes import PhotoServer

from clothing_gateway.authorities import tls_context
from clothing_gateway.client import Client, NoAnswer, UnexpectedAnswer
from clothing_gateway.commands import download

DEFAULT_CONTEXT = ssl.create_default_context


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A root, an intermediate authority and a server's certificate; no basic constraints are marked critical."""
    folder = tmp_path_factory.mktemp("authorities")
    (folder / "ca").write_text("basicConstraints=CA:TRUE\n")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    authority = "req -x509 -newkey rsa:2048 -nodes -addext basicConstraints=CA:TRUE"
    for command in (
        f"{authority} -keyout root.key -out root.pem -subj /CN=root",
        "req -newkey rsa:2048 -nodes -keyout middle.key -out middle.csr -subj /CN=middle",
        "x509 -req -in middle.csr -CA root.pem -CAkey root.key -CAcreateserial -days 2 -extfile ca -out middle.pem",
        "req -newkey rsa:2048 -nodes -keyout key.pem -out server.csr -subj /CN=localhost",
        "x509 -req -in server.csr -CA middle.pem -CAkey middle.key -CAcreateserial -days 2 -extfile names -out end.pem",
        f"{authority} -keyout other.key -out other.pem -subj /CN=other",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    (folder / "chain.pem").write_text((folder / "end.pem").read_text() + (folder / "middle.pem").read_text())
    return folder


@pytest.fixture
def server(stack, folder):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    server = PhotoServer()
    stack.callback(server.stop)
    server._server.socket = context.wrap_socket(server._server.socket, server_side=True, do_handshake_on_connect=False)
    return server


@pytest.fixture(params=["3.11", "3.13"])
def python(request, monkeypatch):
    """The flags of either Python, in the standard library and in urllib3."""
    if request.param == "3.13":

        def strict(make):
            def made(*arguments, **options):
                context = make(*arguments, **options)
                context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
                return context

            return made

        monkeypatch.setattr(ssl, "create_default_context", strict(DEFAULT_CONTEXT))
        urllib3s = urllib3.connection.create_urllib3_context
        monkeypatch.setattr(urllib3.connection, "create_urllib3_context", strict(urllib3s))
    return request.param


def connect(context, port, name="localhost"):
    with socket.create_connection(("127.0.0.1", port), 5) as sock, context.wrap_socket(sock, server_hostname=name):
        pass


def test_a_strict_context_refuses_the_authority(folder, server):
    """So that the tests below would notice."""
    context = DEFAULT_CONTEXT(cafile=folder / "root.pem")
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with pytest.raises(ssl.SSLCertVerificationError, match="not marked critical"):
        connect(context, server.port)


@pytest.mark.parametrize("trusted", ["root.pem", "middle.pem"])
def test_a_companys_authority_is_trusted(folder, server, python, trusted):
    connect(tls_context(str(folder / trusted)), server.port)


def test_other_authorities_and_names_are_refused(folder, server, python):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get local issuer|self-signed"):
        connect(tls_context(str(folder / "other.pem")), server.port)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        connect(tls_context(str(folder / "root.pem")), server.port, "photos.example")


def test_python_client_trusts_the_authority(folder, server, python, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "root.pem"))
    with Client(f"https://localhost:{server.port}", attempts=1) as client, pytest.raises(UnexpectedAnswer):
        client.classify(b"x")  # answered, by what is no gateway
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "other.pem"))
    with Client(f"https://localhost:{server.port}", attempts=1) as client, pytest.raises(NoAnswer, match="TLS"):
        client.classify(b"x")


def test_the_download_trusts_it(folder, server, monkeypatch, tmp_path):
    """By rustls, which no flag of Python's reaches."""
    server.paths["/model.zip"] = b"model"
    archive = download.Archive(f"https://localhost:{server.port}/model.zip", hashlib.sha256(b"model").hexdigest())
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "root.pem"))
    download.fetch(archive, tmp_path / "model.zip", 1000)
    assert (tmp_path / "model.zip").read_bytes() == b"model"
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "other.pem"))
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    with pytest.raises(download.DownloadError, match="certificate is refused"):
        download.fetch(archive, tmp_path / "model.zip", 1000)
