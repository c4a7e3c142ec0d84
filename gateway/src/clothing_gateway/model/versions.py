"""Model versions that requests are routed to: stable, canary, selected."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from clothing_gateway.errors import BadRequest, ModelNotReady
from clothing_gateway.model.signature import Model
from clothing_gateway.settings import Settings

STABLE, CANARY = "stable", "canary"
_NOT_CHECKED = "the model server has not been asked yet"
# A call that takes longer is one that a client may well leave before its end.
_SLOW_SECONDS = 0.1
# Descriptions that are kept: servers that reload one after the other answer with two versions in turn.
_MOST_KNOWN = 8
# The weight of the newest call in the mean, as TCP smooths its round-trip time (RFC 6298).
_WEIGHT = 1 / 8


@dataclass(slots=True)
class ModelVersion:
    """A model version, by newest, number or label, and its description."""

    name: str
    version: int | None = None
    label: str = ""
    state: Model | str = _NOT_CHECKED
    failures: int = 0  # checks in a row that failed
    checked: float = 0.0  # when the last check ended, on the clock of time.monotonic
    known: dict[int, Model] = field(default_factory=dict)  # the newest descriptions, by version number
    predict_seconds: float | None = None  # smoothed; None before the first call

    @property
    def words(self) -> str:
        """How the version is named, for messages."""
        if self.label:
            return f", label {self.label!r},"
        return "" if self.version is None else f", version {self.version},"

    @property
    def fix(self) -> str:
        """The settings to change when the server does not know the version."""
        if self.name in (STABLE, CANARY):
            which = "MODEL" if self.name == STABLE else "CANARY"
            return f"set GATEWAY_MODEL_NAME, GATEWAY_{which}_VERSION or GATEWAY_{which}_LABEL to what it serves"
        return "set GATEWAY_MODEL_NAME or GATEWAY_SELECTABLE_VERSIONS to what it serves"

    @property
    def is_slow(self) -> bool:
        """Whether calls take so long that clients disconnect meanwhile.

        It is assumed until the first call has ended.
        """
        return self.predict_seconds is None or self.predict_seconds > _SLOW_SECONDS

    def remember(self, model: Model) -> None:
        """Keep a description, for answers of versions that the name no longer resolves to.

        Or doesn't yet.
        """
        self.known = dict([*self.known.items(), (model.version, model)][-_MOST_KNOWN:])

    def observe(self, seconds: float) -> None:
        """Add a call's duration to the mean.

        Threads need no lock: an observation that is lost changes nothing.
        """
        mean = self.predict_seconds
        self.predict_seconds = seconds if mean is None else mean + _WEIGHT * (seconds - mean)


def is_chosen(request_id: str, percent: float) -> bool:
    """Whether a request is in the canary's share, by a hash of its request id."""
    share = int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big") / 2**64
    return share < percent / 100


class Versions:
    """Routes each request to a version of the model."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        versions = [ModelVersion(STABLE, settings.model_version, settings.model_label)]
        if settings.canary_version is not None or settings.canary_label:
            versions.append(ModelVersion(CANARY, settings.canary_version, settings.canary_label))
        # Under a name that no other version has: a version label may well be "canary".
        versions += [
            ModelVersion(f"selected {one}", int(one)) if one.isdigit() else ModelVersion(f"selected {one}", label=one)
            for one in settings.selectable_versions
        ]
        self.by_name = {version.name: version for version in versions}
        self.stable = self.by_name[STABLE]

    @property
    def not_ready(self) -> str | None:
        """Why the stable version can't be used, for the operator; None when it can."""
        state = self.stable.state
        return state if isinstance(state, str) else None

    @property
    def states(self) -> dict[str, Model | str]:
        """For each name (stable, canary, selected …) its model, or why there is none."""
        return {name: version.state for name, version in self.by_name.items()}

    def route(self, request_id: str = "", selected: str | None = None) -> Model:
        """Route a request to a model version.

        Raises BadRequest for a version that clients may not select, ModelNotReady where there is none.

        The version that the client selected, else the canary for its share of the requests while it is ready, else
        the stable one.
        """
        if selected is not None:
            state = self._selected(selected).state
        else:
            state = self.stable.state
            canary = self.by_name.get(CANARY)
            if (
                canary is not None
                and isinstance(canary.state, Model)
                and is_chosen(request_id, self._settings.canary_percent)
            ):
                state = canary.state
        if isinstance(state, str):
            raise ModelNotReady(cause=state)
        return state

    def _selected(self, name: str) -> ModelVersion:
        version = self.by_name.get(f"selected {name}")
        if version is None:
            selectable = self._settings.selectable_versions
            raise BadRequest(
                f"X-Model-Version must be one of {', '.join(selectable)}."
                if selectable
                else "This gateway lets no client choose the model's version: leave X-Model-Version out."
            )
        return version

    def fallback(self, refused: Model) -> Model | None:
        """The fallback version for a refused request; None where there is none.

        Photos are prepared again.

        That is what the version's name leads to by now: after a hot reload the model may take photos of another size.
        Else it is the stable version for a refused canary: servers read their configuration one after the other, and
        for a while one has the canary that another does not have yet, or has no longer.
        """
        now = self.by_name[refused.track].state
        if isinstance(now, Model) and now != refused:
            return now
        state = self.stable.state
        return state if refused.track == CANARY and isinstance(state, Model) else None
