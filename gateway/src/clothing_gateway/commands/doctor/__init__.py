"""The command ``doctor``: troubleshooting of an installation.

It runs inside a pod or through port-forward.

Each check reports what it found; a failed one the cause, and which of the chart's values fix it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from clothing_gateway.commands.doctor import own
from clothing_gateway.commands.doctor.report import FAIL, Finding
from clothing_gateway.settings import Settings

# Kubernetes tells each container where its API is, also where it is given no links to other Services.
_IN_POD = "KUBERNETES_SERVICE_HOST"


@dataclass(frozen=True, slots=True)
class Question:
    """The installation to check."""

    environment: Mapping[str, str]
    flags: Mapping[str, str | None]
    admin: str | None = None  # the address of a gateway's admin port
    photo: str | None = None  # an address that a photo is fetched from


def examine(question: Question) -> Iterator[Finding]:
    """Run all checks, and yield each finding at once.

    A check that raises does not stop the others.
    """
    in_pod = _IN_POD in question.environment
    settings, findings = own.load_settings(question.environment, question.flags)
    yield from findings
    if settings is None:
        return

    def model_servers(settings: Settings) -> Iterator[Finding]:
        # Not at the top: wrong settings are reported without waiting for gRPC and NumPy.
        from clothing_gateway.commands.doctor import model

        return model.examine(settings, in_pod=in_pod)

    admin = (question.admin or f"http://localhost:{settings.admin_listen_port}").rstrip("/")
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "keys": lambda: own.keys(settings),
        "model": lambda: model_servers(settings),
        "gateway": lambda: own.admin_port(admin, in_pod=in_pod),
        "fetch": lambda: own.photos(settings, question.photo, in_pod=in_pod),
        "memory": lambda: own.limits(settings, in_pod=in_pod),
    }
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001 - an unforeseen error is a finding like any other
            yield Finding(name, FAIL, f"this check failed: {type(error).__name__}: {error}")
