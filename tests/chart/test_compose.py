"""compose.yaml, read as `docker compose config` reads it: by Compose's own library (ci/tools/compose)."""

import json
import re
from typing import Any

import pytest
from charts import ROOT, run, tool

VERSION = re.search('__version__ = "(.+)"', (ROOT / "gateway/src/clothing_gateway/__init__.py").read_text())[1]


def config(*options: str) -> Any:
    done = run(tool("compose"), *options, cwd=ROOT, env={"PATH": "/usr/bin:/bin", "HOME": "/nowhere"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


OFFICIAL, PORTABLE = (), ("--profile=portable",)
both = pytest.mark.parametrize("options", [OFFICIAL, PORTABLE], ids=["official", "portable"])


def test_compose_runs_the_official_server_by_default():
    assert {name: service["build"]["dockerfile"] for name, service in config(*OFFICIAL)["services"].items()} == {
        "gateway": "gateway/Dockerfile",
        "model": "model-image/Dockerfile",
    }
    assert {name: service["build"]["dockerfile"] for name, service in config(*PORTABLE)["services"].items()} == {
        "gateway": "gateway/Dockerfile",
        "model-portable": "model-image/Dockerfile.portable",
    }


@both
def test_compose_gateway_finds_its_model_server(options):
    services = config(*options)["services"]
    host, port = services.pop("gateway")["environment"]["TF_SERVING_HOST"].split(":")
    [(name, server)] = services.items()
    assert host in [name, *server["networks"]["default"]["aliases"]]
    assert f"--port={port}" in server["command"]
    assert port in server["expose"]


@both
def test_compose_services_are_hardened_and_built_at_this_version(options):
    for name, service in config(*options)["services"].items():
        assert service["read_only"], name
        assert service["tmpfs"] == ["/tmp"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        kind = "gateway" if name == "gateway" else "model"
        assert service["image"].removesuffix("-portable") == f"clothing-{kind}:{VERSION}"
        assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).is_file(), name


@both
def test_compose_publishes_loopback_only(options):
    published = [port for service in config(*options)["services"].values() for port in service.get("ports", [])]
    assert {port["target"] for port in published} == {9696, 9697}
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("services: {a: {imag: b}}", "imag"),
        ("services: {a: {image: 'b:${NOPE}'}}", "NOPE"),
        ("services: {a: {image: b, depends_on: [c]}}", "undefined service"),
        ("services: {a: {image: b, ports: ['99999999:1']}}", "99999999"),
    ],
)
def test_invalid_compose_file_is_detected(text, complaint, tmp_path):
    file = tmp_path / "compose.yaml"
    file.write_text(text)
    done = run(tool("compose"), file)
    assert done.returncode == 1
    assert complaint in done.stderr
