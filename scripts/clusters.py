"""Clusters to install the chart on, with the images built and loaded.

They are for `make kind` and for the end-to-end tests.

    python scripts/clusters.py [--on kind|own] up images install    # any of the three, in this order

Where Docker runs the cluster is Kind's. On a Linux machine without Docker it is the project's own, of two nodes
(tests/cluster, or the command that E2E_CLUSTER names), which needs root. E2E_CONTEXT names a context of the current
kubeconfig to use as it is, on a cluster that can pull from the registry that E2E_REGISTRY names.

Images are tagged by their content, so that an upgrade restarts just what changed and no tag ever means two things.
"""

from __future__ import annotations

import abc
import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "charts/clothing-classifier"
KIND_NAME = "clothing"


@dataclass(frozen=True)
class Image:
    """An image of this project: its name, and what `docker build` is told."""

    name: str
    context: str
    dockerfile: str


GATEWAY = Image("clothing-gateway", ".", "gateway/Dockerfile")
# The portable server: on arm64 the official image doesn't run, and where no registry is reached its base can't be had.
MODEL_PORTABLE = Image("clothing-model", ".", "model-image/Dockerfile.portable")
MODEL_OFFICIAL = Image("clothing-model", ".", "model-image/Dockerfile")
PING = Image("clothing-ping", "images/ping", "images/ping/Dockerfile")


class ClusterError(Exception):
    """A missing prerequisite, and the fix."""


def say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


def run(*command: str, **options: object) -> str:
    """Run a command; its output, or an error that shows it."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise ClusterError(f"`{' '.join(command)}` ended with {done.returncode}\n{done.stdout[-2000:]}")
    return str(done.stdout)


@dataclass
class Cluster(abc.ABC):
    """What the tests and `make kind` need of a cluster; one subclass for each kind."""

    environment: dict[str, str] = field(default_factory=dict)
    registry: str = ""

    @abc.abstractmethod
    def up(self) -> None:
        """Start it, or do nothing where it runs."""

    @property
    def has_official_server(self) -> bool:
        """Whether its model image is based on tensorflow/serving.

        It is based on the portable server otherwise.
        """
        return False

    @abc.abstractmethod
    def build(self, image: Image) -> str:
        """Build an image and make it known to the cluster; its tag."""

    @abc.abstractmethod
    def load(self, reference: str) -> None:
        """Make an image of this machine, as NAME:TAG, known to the cluster."""

    @abc.abstractmethod
    def tag(self, name: str, tag: str, new: str) -> None:
        """Give an image that was built a second tag, also in the cluster."""

    def report(self, folder: Path) -> None:  # noqa: B027 - of a cluster that isn't ours nothing but kubectl's is had
        """Write what the cluster itself logs into a folder."""

    def kubectl(self, *arguments: str, **options: object) -> str:
        """Run kubectl; its output."""
        return run("kubectl", *arguments, env=self.process_environment(), **options)

    def helm(self, *arguments: str, **options: object) -> str:
        """Run helm; its output."""
        return run("helm", *arguments, env=self.process_environment(), **options)

    def process_environment(self) -> dict[str, str]:
        """Environment variables for kubectl and helm on this cluster.

        The project's own tools are on the PATH.
        """
        return {**os.environ, "PATH": f"{ROOT / '.tools/bin'}{os.pathsep}{os.environ['PATH']}", **self.environment}

    def image_values(self, tags: dict[str, str]) -> list[str]:
        """Arguments for helm that name the images built."""
        values = ["--set", f"global.imageRegistry={self.registry}"] if self.registry else []
        values += [
            "--set",
            f"gateway.image.tag={tags['clothing-gateway']}",
            "--set",
            f"server.image.tag={tags['clothing-model']}",
        ]
        return values


class Own(Cluster):
    """The two nodes of tests/cluster: no Docker, images by buildah."""

    nodes = ("control-plane", "worker")  # as its command names them

    def __init__(self, command: Path) -> None:
        self.command = str(command)
        super().__init__({"KUBECONFIG": run(self.command, "kubeconfig").strip()}, registry="localhost")

    def up(self) -> None:
        say("starting the cluster of tests/cluster (the first time it builds Kubernetes, for up to 20 minutes)")
        run(self.command, "up")
        self._add("ingress", "no Ingress controller, so tests of routes are left out")
        # Minutes of compiling for one scenario: only where everything is asked for.
        if os.environ.get("E2E") == "full":
            say("KEDA (the first time it is built, for up to 15 minutes)")
            self._add("keda", "no KEDA, so its test is left out")

    def _add(self, what: str, without: str) -> None:
        try:
            run(self.command, what)
        except ClusterError as error:
            say(f"{without}: {error}")

    def report(self, folder: Path) -> None:
        run(self.command, "report", str(folder), stderr=subprocess.STDOUT)

    def build(self, image: Image) -> str:
        name = f"localhost/{image.name}"
        dockerfile, context = str(ROOT / image.dockerfile), str(ROOT / image.context)
        run(self.command, "build", "--quiet", "--layers", "-t", f"{name}:build", "-f", dockerfile, context)
        tag = content_tag(run("buildah", "images", "--no-trunc", "--quiet", f"{name}:build"))
        run("buildah", "tag", f"{name}:build", f"{name}:{tag}")
        if f"{name}:{tag}" not in run(self.command, "images").split():
            self.load(f"{name}:{tag}")
        return tag

    def load(self, reference: str) -> None:
        run(self.command, "load", reference)

    def tag(self, name: str, tag: str, new: str) -> None:
        run(self.command, "tag", f"localhost/{name}:{tag}", f"localhost/{name}:{new}")


class Kind(Cluster):
    """Kubernetes in Docker."""

    @property
    def has_official_server(self) -> bool:
        return os.uname().machine == "x86_64"

    def up(self) -> None:
        for tool, where in (
            ("kind", "https://kind.sigs.k8s.io"),
            ("kubectl", "https://kubernetes.io/docs/tasks/tools/"),
        ):
            if shutil.which(tool) is None:
                raise ClusterError(f"{tool} is not on the PATH; install it ({where})")
        if KIND_NAME not in run("kind", "get", "clusters").split():
            say(f"creating the Kind cluster {KIND_NAME}")
            config = str(ROOT / "scripts/kind.yaml")
            run("kind", "create", "cluster", "--name", KIND_NAME, "--config", config, "--wait", "120s")
        run("kubectl", "config", "use-context", f"kind-{KIND_NAME}")

    def build(self, image: Image) -> str:
        tag = docker_build(image, image.name)
        self.load(f"{image.name}:{tag}")
        return tag

    def tag(self, name: str, tag: str, new: str) -> None:
        run("docker", "tag", f"{name}:{tag}", f"{name}:{new}")
        self.load(f"{name}:{new}")

    def report(self, folder: Path) -> None:
        run("kind", "export", "logs", str(folder), "--name", KIND_NAME, stderr=subprocess.STDOUT)

    def load(self, reference: str) -> None:
        run("kind", "load", "docker-image", reference, "--name", KIND_NAME)


class Existing(Cluster):
    """A context of the user's kubeconfig.

    Images are pushed to a registry that it can pull from.
    """

    def __init__(self, context: str, registry: str) -> None:
        super().__init__(registry=registry)
        self.context = context

    def up(self) -> None:
        run("kubectl", "--context", self.context, "get", "nodes")

    def kubectl(self, *arguments: str, **options: object) -> str:
        return super().kubectl("--context", self.context, *arguments, **options)

    def helm(self, *arguments: str, **options: object) -> str:
        return super().helm("--kube-context", self.context, *arguments, **options)

    def build(self, image: Image) -> str:
        name = f"{self.registry}/{image.name}"
        tag = docker_build(image, name)
        self.load(f"{name}:{tag}")
        return tag

    def load(self, reference: str) -> None:
        run("docker", "push", reference)

    def tag(self, name: str, tag: str, new: str) -> None:
        run("docker", "tag", f"{self.registry}/{name}:{tag}", f"{self.registry}/{name}:{new}")
        self.load(f"{self.registry}/{name}:{new}")


def content_tag(image_id: str) -> str:
    """A tag for what an image holds, from its id."""
    return f"dev-{image_id.strip().removeprefix('sha256:')[:12]}"


def docker_build(image: Image, name: str) -> str:
    """Build an image with Docker as ``name:TAG``; the tag."""
    dockerfile, context = str(ROOT / image.dockerfile), str(ROOT / image.context)
    run("docker", "build", "--tag", f"{name}:build", "--file", dockerfile, context)
    tag = content_tag(run("docker", "images", "--no-trunc", "--quiet", f"{name}:build"))
    run("docker", "tag", f"{name}:build", f"{name}:{tag}")
    return tag


def docker_runs() -> bool:
    """Whether a Docker engine answers."""
    return (
        shutil.which("docker") is not None
        and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
    )


def find(wanted: str = "") -> Cluster:
    """The cluster to use; the module's text says which."""
    if context := os.environ.get("E2E_CONTEXT"):
        registry = os.environ.get("E2E_REGISTRY", "")
        if not registry:
            raise ClusterError(
                "E2E_CONTEXT is set, but not E2E_REGISTRY: name a registry that the cluster can pull from"
            )
        return Existing(context, registry)
    if wanted == "kind" or (not wanted and docker_runs()):
        if not docker_runs():
            raise ClusterError(
                "no Docker engine answers; start Docker, or use a machine that has it: Kind runs in Docker"
            )
        return Kind()
    command = Path(os.environ.get("E2E_CLUSTER", ROOT / "tests/cluster/cluster"))
    if not command.is_file():
        raise ClusterError(f"E2E_CLUSTER={command}: there is no such command")
    if sys.platform != "linux" or os.geteuid() != 0:
        raise ClusterError(
            "no Docker engine answers, and the project's own cluster needs Linux and root: "
            "start Docker, run this as root, or set E2E_CONTEXT and E2E_REGISTRY"
        )
    return Own(command)


TAGS = ROOT / ".cache/image-tags.json"


def build_images(cluster: Cluster) -> dict[str, str]:
    """Build and load the images; return their tags by name.

    The tags are kept in .cache for the tests.
    """
    tags = {}
    for image in (GATEWAY, MODEL_OFFICIAL if cluster.has_official_server else MODEL_PORTABLE, PING):
        started = time.monotonic()
        say(f"building {image.name} from {image.dockerfile}")
        tags[image.name] = cluster.build(image)
        say(f"{image.name}:{tags[image.name]} built and loaded in {time.monotonic() - started:.0f} s")
    TAGS.parent.mkdir(exist_ok=True)
    TAGS.write_text(json.dumps(tags))
    return tags


def install(cluster: Cluster, tags: dict[str, str]) -> None:
    """Install the chart as in README.md, in the current namespace; print its notes."""
    values = ROOT / "Chart-values-examples/kind.yaml"
    release = ["clothing-classifier", str(CHART), "--values", str(values), "--wait", "--timeout", "5m"]
    say(
        "helm upgrade --install clothing-classifier charts/clothing-classifier --values Chart-values-examples/kind.yaml"
    )
    print(cluster.helm("upgrade", "--install", *release, *cluster.image_values(tags)))


def main() -> int:
    """Run the steps asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--on", choices=("kind", "own"), default="", help="the kind of cluster; found by itself when left out"
    )
    parser.add_argument("steps", nargs="+", choices=("up", "images", "install"))
    arguments = parser.parse_args()
    try:
        cluster = find(arguments.on)
        tags: dict[str, str] = {}
        if "up" in arguments.steps:
            cluster.up()
        if "images" in arguments.steps:
            tags = build_images(cluster)
        if "install" in arguments.steps:
            install(cluster, tags or json.loads(TAGS.read_text()))
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
