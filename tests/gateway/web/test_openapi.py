"""The OpenAPI document against the living server, by schemathesis."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fakes import image_bytes

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[2] / "gateway/src/clothing_gateway/web/openapi.yaml"


@pytest.mark.timeout(180)
def test_server_conforms_to_the_openapi_document(start_gateway, model_server, photo_server, tmp_path):
    photo_server.paths["/photo"] = image_bytes()
    gateway = start_gateway(
        model_server.address,
        fetch_allowed_networks="127.0.0.0/8",
        fetch_allowed_ports=photo_server.port,
        selectable_versions="1",
    )
    document = yaml.safe_load(DOCUMENT.read_text())
    schemas, bodies = document["components"]["schemas"], document["components"]["requestBodies"]
    one, several = (bodies[name]["content"] for name in ("OnePhoto", "Photos"))
    # What can be fetched and what is a photo no schema says: formats, of which schemathesis_hooks.py has examples.
    schemas["PhotoUrl"] |= {"format": "photo-url", "examples": [f"{photo_server.url}/photo"]}
    files = several["multipart/form-data"]["schema"]["properties"]["image"]
    for file in (one["multipart/form-data"]["schema"]["properties"]["image"], files["items"]):
        file["format"] = "photo"
    # Neither how many photos nor which versions there are: the operator does.
    urls = several["application/json"]["schema"]["oneOf"][1]["properties"]["urls"]
    files["maxItems"] = urls["maxItems"] = 8
    document["components"]["parameters"]["ModelVersion"]["schema"] = {"const": "1"}
    (tmp_path / "openapi.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "schemathesis.toml").write_text(
        "checks.positive_data_acceptance.expected-statuses = ['2xx']\n"
        "checks.negative_data_rejection.expected-statuses = [400, 405, 413, 415, 422]\n"
    )
    command = [sys.executable, "-m", "schemathesis.cli", "run", "openapi.yaml"]
    command += ["--url", f"http://127.0.0.1:{gateway.port}", "--checks", "all", "--continue-on-failure"]
    command += ["--max-examples", "30", "--generation-deterministic", "--no-color"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ
        | {
            "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
            "PYTHONPATH": f"{HERE}:{HERE.parent}",
            "PHOTO_URL": f"{photo_server.url}/photo",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout[-15000:], done.stderr[-2000:])
    assert done.returncode == 0
    assert "traceback" not in "".join(gateway.log)
    assert gateway.post("/predict", image_bytes())[0] == 200
