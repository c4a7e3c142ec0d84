"""The compared systems: how to start each, and how to send photos to it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import programs
from programs import CACHE, HERE, BenchError, Running

from processes import GATEWAY_BIN, ROOT, free_port

_VERSIONS = """
import importlib.metadata, json
print(json.dumps({one.name.lower(): one.version for one in importlib.metadata.distributions()}))
"""
KEY = "a-key-of-the-benchmark"
IMAGE = ROOT / "gateway/Dockerfile"
# glibc gives large buffers back at once until its thresholds have grown, and takes them anew with a page fault for
# each 4 KiB. The floor must not pay for that.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(2 << 30)}


@dataclass(frozen=True)
class Form:
    """How to send a photo: the load generator's flags."""

    path: str
    kind: str
    body: str = '{"url": "{url}"}'
    answer: str = ""
    header: str = ""

    def flags(self) -> list[str]:
        flags = ["-form", self.kind, "-body", self.body, "-answer", self.answer]
        return [*flags, "-header", self.header] if self.header else flags


@dataclass(frozen=True)
class Address:
    """A system's ports, its number of workers, and the servers that it calls."""

    port: int
    admin_port: int
    model: str
    photos: str
    workers: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True)
class System:
    """A system under test."""

    name: str
    title: str
    role: str  # ours, floor, course, peer
    command: Callable[[Address], list[str | Path]]
    forms: dict[str, Form]  # by "url", "upload" …
    ready: Callable[[Address], bool]
    workers: int = 1
    folder: Path = ROOT
    variables: Callable[[Address], dict[str, str]] = field(default=lambda address: {})
    lock: Path | None = None  # its environment's; None: the gateway's
    packages: tuple[str, ...] = ()  # whose versions the results name
    clients: int = 8  # the floor has one thread and so one client
    build: Callable[[], None] = lambda: None  # what must be compiled for it

    @property
    def environment(self) -> str:
        return self.lock.parent.name if self.lock else ""

    def prepare(self, say: Callable[[str], object]) -> dict[str, str]:
        """Make its environment; the versions of its packages."""
        self.build()
        python = GATEWAY_BIN / "python"
        if self.lock is not None:
            python = programs.environment(self.environment, self.lock, say) / "bin/python"
        elif not python.exists():
            raise BenchError("the gateway is not installed in gateway/.venv: run make dev")
        done = subprocess.run([python, "-c", _VERSIONS], stdout=subprocess.PIPE, check=True)
        there: dict[str, str] = json.loads(done.stdout)
        return {name: there[name] for name in self.packages if name in there}

    @contextmanager
    def running(self, model: str, photos: str) -> Iterator[tuple[Running, Address]]:
        """Start it, wait until it is ready, stop it at the end."""
        address = Address(free_port(), free_port(), model, photos, self.workers)
        variables = {"TF_SERVING_HOST": model, **self.variables(address)}
        running = programs.start(self.name, self.command(address), self.folder, **variables)
        with programs.stopping(running):
            programs.wait_until(running, lambda: self.ready(address))
            yield running, address


def image_variables() -> dict[str, str]:
    """The image's environment variables, so that the benchmark measures the image."""
    text = IMAGE.read_text().replace("\\\n", " ")
    final = text[text.rindex("\nFROM ") :]
    found = dict(re.findall(r"([A-Za-z_]\w*)=(\S+)", " ".join(re.findall(r"^ENV (.*)$", final, re.MULTILINE))))
    return {name: value for name, value in found.items() if name not in ("PATH", "HOME", "GATEWAY_LISTEN_HOST")}


def _our_variables(address: Address) -> dict[str, str]:
    """All features with a cost per request are on; limits are the defaults."""
    keys = CACHE / "keys"
    keys.write_text(f"bench {KEY}\n")
    return image_variables() | {
        "GATEWAY_LISTEN_PORT": str(address.port),
        "GATEWAY_ADMIN_LISTEN_PORT": str(address.admin_port),
        "GATEWAY_DRAIN_DELAY_SECONDS": "0",
        "GATEWAY_FETCH_ALLOWED_NETWORKS": "127.0.0.0/8",
        "GATEWAY_FETCH_ALLOWED_PORTS": address.photos.rpartition(":")[2],
        "GATEWAY_FETCH_ALLOWED_HOSTS": "127.0.0.1,*.example.com",
        "GATEWAY_FETCH_DENIED_HOSTS": "*.example.net",
        "GATEWAY_KEYS_FILE": str(keys),
        "GATEWAY_RATE_PHOTOS_PER_MINUTE": "1000000",
        "GATEWAY_RATE_BURST_PHOTOS": "100000",
        "GATEWAY_TRUSTED_PROXIES": "10.0.0.0/8",
        "GATEWAY_MODEL_VERSION": "1",
        "GATEWAY_CANARY_VERSION": "2",
        "GATEWAY_CANARY_PERCENT": "10",
        "GATEWAY_SELECTABLE_VERSIONS": "1,2",
    }


_AUTHORIZATION = f"Authorization: Bearer {KEY}"

OURS = System(
    name="clothing-gateway",
    title="clothing-gateway",
    role="ours",
    command=lambda address: [GATEWAY_BIN / "clothing-gateway", "serve"],
    variables=_our_variables,
    ready=lambda address: programs.answers(f"http://127.0.0.1:{address.admin_port}/readyz"),
    forms={
        "url": Form("/predict", "url", header=_AUTHORIZATION),
        "upload": Form("/predict", "raw", header=_AUTHORIZATION),
        "multipart": Form("/predict", "multipart", header=_AUTHORIZATION),
    },
    packages=("clothing-gateway", "clothing-jpeg", "flask", "grpcio", "numpy", "pillow", "protobuf", "waitress"),
)

FLOOR = System(
    name="floor",
    title="floor: the bare steps, one thread",
    role="floor",
    command=lambda address: [GATEWAY_BIN / "python", HERE / "floor.py", str(address.port)],
    variables=lambda address: KEEP_MEMORY,
    ready=lambda address: programs.connects(address.port),
    forms={"url": Form("/predict", "url"), "upload": Form("/predict", "raw")},
    packages=("grpcio", "numpy", "pillow"),
    clients=1,
)


# What the same steps cost while the other core is as busy: caches and memory are shared.
FLOOR_2 = replace(
    FLOOR,
    name="floor-2",
    title="floor, two processes of one thread",
    command=lambda address: [GATEWAY_BIN / "python", HERE / "floor.py", str(address.port), "2"],
    workers=2,
    clients=2,
)


def _course(workers: int) -> System:
    lock = HERE / "course/requirements.lock"
    return System(
        name=f"course-{workers}",
        title=f"course's gateway, gunicorn, {workers} sync worker{'s' * (workers > 1)}",
        role="course",
        command=lambda address: [
            CACHE / "envs/course/bin/gunicorn", f"--bind=127.0.0.1:{address.port}", f"--workers={workers}",
            "--log-level=warning", "gateway:app",
        ],
        folder=lock.parent,
        ready=lambda address: programs.connects(address.port),
        workers=workers,
        forms={"url": Form("/predict", "url")},
        lock=lock,
        packages=("flask", "grpcio", "gunicorn", "keras-image-helper", "numpy", "pillow", "protobuf"),
    )  # fmt: skip


def _peer(name: str, title: str, workers: int, package: str, **more: object) -> System:
    lock = HERE / f"peers/{name}/requirements.lock"
    return System(
        name=f"{name}-{workers}",
        title=f"{title}, {workers} worker{'s' * (workers > 1)}",
        role="peer",
        workers=workers,
        folder=lock.parent,
        lock=lock,
        packages=(package, "grpcio", "numpy", "pillow", "protobuf"),
        variables=lambda address: {
            "PYTHONPATH": str(HERE / "peers"),
            "WORKERS": str(workers),
            # No peer calls home from a benchmark.
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": str(CACHE / "bentoml"),
        },
        **more,  # type: ignore[arg-type]
    )


def _kserve(workers: int) -> System:
    path = "/v1/models/clothing-model:predict"
    return _peer(
        "kserve", "KServe's model server", workers, "kserve",
        command=lambda address: [
            CACHE / "envs/kserve/bin/python", "serve.py", f"--http_port={address.port}", f"--workers={workers}",
        ],
        ready=lambda address: programs.answers(f"{address.url}/v2/models/clothing-model/ready"),
        forms={
            "url": Form(path, "url", '{"instances": [{"url": "{url}"}]}', "predictions.0"),
            "upload": Form(path, "base64", '{"instances": [{"image": {"b64": "{base64}"}}]}', "predictions.0"),
        },
    )  # fmt: skip


def _bentoml(workers: int) -> System:
    return _peer(
        "bentoml", "BentoML", workers, "bentoml",
        command=lambda address: [
            CACHE / "envs/bentoml/bin/bentoml", "serve", "service:Classifier", "--host=127.0.0.1",
            f"--port={address.port}",
        ],
        ready=lambda address: programs.answers(f"{address.url}/readyz"),
        forms={"url": Form("/url", "url"), "upload": Form("/upload", "multipart")},
    )  # fmt: skip


def _litserve(workers: int) -> System:
    return _peer(
        "litserve", "LitServe", workers, "litserve",
        command=lambda address: [CACHE / "envs/litserve/bin/python", "serve.py", str(address.port), str(workers)],
        ready=lambda address: programs.answers(f"{address.url}/health"),
        forms={"url": Form("/predict", "url"), "upload": Form("/predict", "multipart")},
    )  # fmt: skip


def before(checkout: Path) -> System:
    """The gateway of another checkout, with its own native core.

    It runs in this checkout's environment.
    """
    core = CACHE / "before"
    sources = f"{checkout / 'gateway/src'}:{checkout / 'contract/src'}:{core}"

    def build() -> None:
        if not (checkout / "gateway/src/clothing_gateway").is_dir():
            raise BenchError(f"--against {checkout}: no checkout of this repository; git worktree add makes one")
        programs.build_jpeg(checkout / "gateway/jpeg", core)

    return replace(
        OURS,
        name="before",
        title=f"clothing-gateway of {checkout.name}",
        role="before",
        command=lambda address: [GATEWAY_BIN / "python", "-m", "clothing_gateway", "serve"],
        variables=lambda address: _our_variables(address) | {"PYTHONPATH": sources},
        build=build,
    )


SYSTEMS = [
    OURS,
    FLOOR,
    FLOOR_2,
    *(make(workers) for make in (_course, _kserve, _bentoml, _litserve) for workers in (1, 2)),
]
