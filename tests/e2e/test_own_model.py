"""A model of one sigmoid for two labels: `make model-image`, the chart with the values that it prints, the gateway."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import urllib3
from kube import NAMESPACE, Release, clusters, load_balancer, make_namespace
from PIL import Image

import model_kinds
import model_worker
import processes
from processes import MODEL_BIN, ROOT, SAMPLE

HERE = f"{NAMESPACE}-pets"
KIND = model_kinds.KINDS["sigmoid"]
# One pod of each tier, in place of two.
SETTINGS = ("gateway.service.type=LoadBalancer", "gateway.replicas=1", "server.replicas=1")


@dataclass(frozen=True)
class Installed:
    """The release's address, and what Keras gives for each photo."""

    base: str
    photos: dict[Path, list[float]]


@pytest.fixture(scope="module")
def installed(
    cluster: clusters.Cluster, tags: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installed]:
    folder = tmp_path_factory.mktemp("pets")
    photos = [folder / "photos/0.png", folder / "photos/1.jpg"]
    photos[0].parent.mkdir()
    photos[0].write_bytes(SAMPLE.read_bytes())
    Image.linear_gradient("L").resize((301, 200)).convert("RGB").save(photos[1])
    with model_worker.worker(folder / "log") as worker:
        made = worker.ask(make="sigmoid", folder=folder, photos=photos[0].parent)
    tag = f"{cluster.registry}/pets:1".removeprefix("/")
    values = folder / "values.yaml"
    with values.open("w") as printed:
        command: list[str | Path] = [MODEL_BIN / "python", ROOT / "scripts/model_image.py", made["sources"][0]]
        command += ["--tag", tag, f"--labels={','.join(KIND.labels)}", *KIND.options]
        command += [] if cluster.has_official_server else ["--portable"]
        built = subprocess.run(command, stdout=printed, stderr=subprocess.PIPE, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    cluster.load(tag)
    make_namespace(cluster, HERE)
    release = Release("pets", cluster, tags, HERE)
    # Those of the model's image are among the values printed.
    settings = [*SETTINGS, f"gateway.image.tag={tags['clothing-gateway']}"]
    settings += [f"global.imageRegistry={cluster.registry}"] if cluster.registry else []
    arguments = [argument for value in settings for argument in ("--set", value)]
    try:
        release.helm("upgrade", str(clusters.CHART), "--install", "--wait", "--values", str(values), *arguments)
        expected = {photo: made["probabilities"][0][photo.name] for photo in photos}
        yield Installed(load_balancer(cluster, HERE, release.gateway), expected)
    finally:
        cluster.kubectl("delete", "namespace", HERE, "--wait=false", "--ignore-not-found")


def test_probabilities_of_a_binary_model_equal_keras(installed: Installed) -> None:
    for photo, expected in installed.photos.items():

        def classified(photo: Path = photo) -> urllib3.BaseHTTPResponse | None:
            answer = urllib3.request("POST", f"{installed.base}/classify", body=photo.read_bytes(), retries=False)
            return answer if answer.status == 200 else None

        # Ready pods may be unknown to a node's rules for another second.
        answer = processes.wait_for("an answer", classified, 30).json()
        assert answer["model"] == {"name": "pets", "version": "1", "scores": "sigmoid", "threshold": 0.5}
        found = {each["label"]: each["probability"] for each in answer["predictions"]}
        assert [found[label] for label in KIND.labels] == pytest.approx(expected, abs=1e-5)
        assert sum(found.values()) == pytest.approx(1, abs=1e-6)
