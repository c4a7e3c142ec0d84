"""The command ``doctor``: looks at an installation that is sick, from inside a pod or through port-forward.

Each check says what is so, and where it is wrong the cause and which of the chart's values mend it.
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
    """What the doctor is asked to look at."""

    environment: Mapping[str, str]
    flags: Mapping[str, str | None]
    admin: str | None = None  # the address of a gateway's admin port
    photo: str | None = None  # an address that a photo is fetched from


def examine(question: Question) -> Iterator[Finding]:
    """Every finding, as soon as it is there. One check that breaks does not end the others."""
    in_pod = _IN_POD in question.environment
    settings, findings = own.load_settings(question.environment, question.flags)
    yield from findings
    if settings is None:
        return

    def model_servers(settings: Settings) -> Iterator[Finding]:
        # Not at the top: wrong settings are told without waiting for gRPC and NumPy.
        from clothing_gateway.commands.doctor.model import examine as look

        return look(settings, in_pod=in_pod)

    admin = (question.admin or f"http://localhost:{settings.admin_listen_port}").rstrip("/")
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "keys": lambda: own.keys(settings),
        "model": lambda: model_servers(settings),
        "gateway": lambda: own.admin_port(admin, in_pod=in_pod),
        "fetch": lambda: own.photos(settings, question.photo),
        "memory": lambda: own.limits(settings, in_pod=in_pod),
    }
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001 - what nobody thought of is a finding like any other
            yield Finding(name, FAIL, f"this check broke off: {type(error).__name__}: {error}")
