"""The course's client as its students have it: their script and their addresses, nothing changed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import LABELS, image_bytes

# What the course's test.py does, with the addresses that are written down in it.
GATEWAY, PANTS = "http://localhost:9696", "http://bit.ly/mlbookcamp-pants"
SCRIPT = f"""
import requests

url = "{GATEWAY}/predict"
data = {{"url": "{PANTS}"}}
print(requests.post(url, json=data).json())
"""
# The model server, the photo's server, the gateway, and then the script. The photo's address is a short one, which
# leads to another.
STACK = """
import contextlib, subprocess, sys
sys.path.insert(0, sys.argv[1])
from fakes import FakeModel, GatewayProcess, ModelServer, PhotoServer, image_bytes

with contextlib.ExitStack() as stack:
    photos = PhotoServer(port=80)
    photos.paths["/mlbookcamp-pants"] = (301, b"", {"Location": "http://photos.example/pants.jpg"})
    photos.paths["/pants.jpg"] = image_bytes((400, 300))
    model = ModelServer(FakeModel())
    gateway = GatewayProcess(model.address, listen_port=9696, fetch_allowed_networks="127.0.0.0/8")
    for part in (photos, model, gateway):
        stack.callback(part.stop)
    sys.exit(subprocess.run([sys.executable, sys.argv[2]], check=False).returncode)
"""
# In a network of its own, port 9696 is free, and the internet's names are on loopback.
NAMESPACE = ("unshare", "--user", "--map-root-user", "--net", "--mount", "--fork", "--kill-child", "sh", "-ec")
ENTER = 'mount --bind "$0" /etc/hosts; ip link set lo up; exec "$@"'


def can_make_a_network(hosts):
    try:
        return subprocess.run([*NAMESPACE, ENTER, hosts, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def scores_of(printed):
    scores = ast.literal_eval(printed)
    assert list(scores) == sorted(LABELS)
    assert all(isinstance(score, float) for score in scores.values())
    return scores


def test_course_script_works_unchanged(tmp_path):
    hosts, script = tmp_path / "hosts", tmp_path / "test.py"
    hosts.write_text("127.0.0.1 localhost bit.ly photos.example\n")
    if not can_make_a_network(hosts):
        pytest.skip("needs unshare, ip, and the right to make a network namespace")
    script.write_text(SCRIPT)
    done = subprocess.run(
        [*NAMESPACE, ENTER, hosts, sys.executable, "-c", STACK, Path(__file__).parents[1], script],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scores_of(done.stdout)


def test_the_courses_script_works_with_another_address(start_gateway, model_server, photo_server, tmp_path):
    """As a student changes it for Kubernetes; and where a machine allows no networks."""
    photo_server.paths["/mlbookcamp-pants"] = (301, b"", {"Location": f"{photo_server.url}/pants.jpg"})
    photo_server.paths["/pants.jpg"] = photo = image_bytes((400, 300))
    gateway = start_gateway(
        model_server.address, fetch_allowed_networks="127.0.0.0/8", fetch_allowed_ports=photo_server.port
    )
    script = tmp_path / "test.py"
    script.write_text(
        SCRIPT.replace(GATEWAY, f"http://127.0.0.1:{gateway.port}").replace(
            PANTS, f"{photo_server.url}/mlbookcamp-pants"
        )
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=20, check=True)
    assert scores_of(done.stdout) == gateway.post("/predict", photo)[1]
