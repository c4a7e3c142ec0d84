"""Version manager: watches the models' folders, loads and unloads versions.

A version that replaces another is loaded and warmed up before the other is unloaded, and a version in use is unloaded
only after its last call: there is no moment without an answer, but where the version asked for is not on the volume.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clothing_model import savedmodel
from clothing_model.server import predict
from clothing_model.server.errors import RequestError, failed_precondition, from_number, invalid, not_found
from clothing_model.server.flags import Flags
from clothing_model.server.servable import Servable, Settings

log = logging.getLogger(__name__)


class Stage(enum.Enum):
    """A version's state, with the numbers of ModelVersionStatus.State."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass
class VersionState:
    """A version's stage, why it failed, and how many calls use it."""

    stage: Stage
    error: RequestError | None = None
    servable: Servable | None = None
    users: int = 0


@dataclass
class Model:
    """A model's configuration and its versions by number."""

    config: Any  # ModelConfig
    versions: dict[int, VersionState] = field(default_factory=dict)
    waiting: bool = True  # no version has come up yet, and none has failed for good


class Manager:
    """All models and their versions.

    `start` returns at once; `wait` returns when every model has a version up, or one has failed.
    """

    def __init__(self, flags: Flags, settings: Settings, load: Callable[..., Servable] = Servable) -> None:
        self._flags = flags
        self._settings = settings
        self._load = load
        self._models: dict[str, Model] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._changed = threading.Condition()  # guards all of the above; notified at every change
        self._working = threading.Lock()  # serialises loads and unloads
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    # Configuration

    def configure(self, config: Any) -> None:
        """Apply a ModelServerConfig: add and remove models, set labels."""
        if config.WhichOneof("config") == "custom_model_config":
            raise invalid("ModelServer does not yet support custom model config.")
        models = list(config.model_config_list.config)
        names = [model.name for model in models]
        for model in models:
            if names.count(model.name) > 1:
                raise invalid(f"Illegal to list model {model.name} multiple times in config list")
            if not Path(model.base_path).is_absolute() and self._flags.model_config_file:
                raise invalid(
                    f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
                )
            if model.model_platform not in ("tensorflow", "") or (not model.model_platform and model.model_type != 1):
                raise invalid(f"Model {model.name} requests unsupported platform {model.model_platform or '(none)'}")
        with self._changed:
            self._labels = self._new_labels(models)
            for model in models:
                log.info("(Re-)adding model: %s", model.name)
                self._models.setdefault(model.name, Model(model)).config = model
            for name in set(self._models) - set(names):
                empty = type(self._models[name].config)()
                empty.CopyFrom(self._models[name].config)
                empty.base_path = ""  # no version is aspired to: all are unloaded
                self._models[name].config = empty
            self._changed.notify_all()

    def reload(self, config: Any) -> None:
        """Apply a configuration and load its models before returning.

        Raises:
            RequestError: the configuration is refused, or a new model has no version up (server_core.cc: one that was
                configured before may lose all its versions without an error).

        """
        with self._changed:
            before = {name for name, model in self._models.items() if model.config.base_path}
        self.configure(config)
        self.poll()
        for model in config.model_config_list.config:
            if model.name in before:
                continue
            states = self.states(model.name)
            failed = [f"version {version}: {state.error}" for version, state in states.items() if state.error]
            if not any(state.stage is Stage.AVAILABLE for state in states.values()):
                reason = "; ".join(failed) or f"no version under {model.base_path}"
                raise from_number(2, f"1 servable(s) did not become available: {{name: {model.name}}} due to {reason}")

    def _new_labels(self, models: list[Any]) -> dict[str, dict[str, int]]:
        labels: dict[str, dict[str, int]] = {}
        for model in models:
            states = self._models[model.name].versions if model.name in self._models else {}
            for label, version in model.version_labels.items():
                available = version in states and states[version].stage is Stage.AVAILABLE
                moved = self._labels.get(model.name, {}).get(label, version) != version
                if not available and (moved or not self._flags.allow_version_labels_for_unavailable_models):
                    raise failed_precondition(
                        f"Request to assign label to version {version} of model {model.name}, "
                        "which is not currently available for inference"
                    )
                labels.setdefault(model.name, {})[label] = version
        return labels

    # Lifecycle

    def start(self, read_config: Callable[[], Any] | None = None) -> None:
        """Start to watch the folders and, by flag, the configuration file."""
        self._spawn(self._watch_folders)
        if read_config is not None and self._flags.model_config_file_poll_wait_seconds > 0:
            self._spawn(lambda: self._watch_config(read_config))

    def _spawn(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        self._threads.append(thread)

    def wait(self, stopping: Callable[[], bool]) -> list[str]:
        """Block until the first versions are up; returns messages of failed ones."""
        with self._changed:
            while not stopping():
                failures = [
                    f"{{name: {name} version: {version}}} due to error: {state.error}"
                    for name, model in self._models.items()
                    if not model.waiting and not _available(model)
                    for version, state in model.versions.items()
                    if state.error
                ]
                if failures or not any(model.waiting for model in self._models.values()):
                    return failures
                self._changed.wait(0.2)
        return []

    def stop(self) -> None:
        """Stop watching folders and the configuration file."""
        self._stopping.set()

    def _watch_folders(self) -> None:
        seconds = self._flags.file_system_poll_wait_seconds
        if seconds < 0:
            return
        while True:
            self.poll()
            if seconds == 0 or self._stopping.wait(seconds):
                return

    def _watch_config(self, read_config: Callable[[], Any]) -> None:
        while not self._stopping.wait(self._flags.model_config_file_poll_wait_seconds):
            try:
                self.reload(read_config())
            except Exception as error:  # noqa: BLE001 - a bad file must not end the watch
                log.error("Failed to reload the config file: %s", error)  # noqa: TRY400 - as upstream logs it

    def poll(self) -> None:
        """Poll each model's folder once, and load new versions."""
        with self._changed:
            models = list(self._models.items())
        for name, model in models:
            with self._working:
                try:
                    wanted = _aspired(name, model.config)
                except OSError as error:
                    # No traceback: upstream logs this line once a second while a folder is missing.
                    log.error("FileSystemStoragePathSource encountered a filesystem access error: %s", error)  # noqa: TRY400
                    continue
                self._settle(name, model, wanted)

    def _settle(self, name: str, model: Model, wanted: dict[int, Path]) -> None:
        """Load and unload versions in sequence until the wanted are up or failed."""
        with self._changed:
            for version in [v for v, state in model.versions.items() if v not in wanted and state.error]:
                model.versions[version] = VersionState(Stage.END)  # may be tried again when its folder is back
        while not self._stopping.is_set():
            new = {
                version
                for version in wanted
                if (state := model.versions.get(version)) is None or (state.stage is Stage.END and not state.error)
            }
            action = next_action(_available(model), set(wanted), new)
            if action is None:
                break
            kind, version = action
            if kind == "unload":
                self._unload(name, model, version)
            else:
                self._bring_up(name, model, version, wanted[version])
        if wanted:
            with self._changed:
                model.waiting = False
                self._changed.notify_all()

    def _bring_up(self, name: str, model: Model, version: int, path: Path) -> None:
        """Load a version; a failed one is retried after its folder was recreated."""
        self._set(model, version, VersionState(Stage.LOADING))
        try:
            servable = self._load_with_retries(name, version, path)
        except RequestError as error:
            self._set(model, version, VersionState(Stage.END, error))
        else:
            self._set(model, version, VersionState(Stage.AVAILABLE, servable=servable))
            log.info("Successfully loaded servable version {name: %s version: %d}", name, version)

    def _load_with_retries(self, name: str, version: int, path: Path) -> Servable:
        attempts = self._flags.max_num_load_retries + 1
        for attempt in range(1, attempts + 1):
            log.info("Loading servable version {name: %s version: %d}", name, version)
            try:
                servable = self._load(name, version, path, self._settings)
                try:
                    if self._settings.warmup:
                        predict.warm_up(servable, self._settings.warmup_iterations, self._settings.metrics)
                except BaseException:
                    servable.close()
                    raise
            except Exception as error:
                failure = (
                    error if isinstance(error, RequestError) else from_number(2, f"{type(error).__name__}: {error}")
                )
                log.error("Loading servable: {name: %s version: %d} failed: %s", name, version, failure)  # noqa: TRY400 - the same
                pause = max(0, self._flags.load_retry_interval_micros) / 1e6
                if attempt == attempts or self._stopping.wait(pause):
                    raise failure from error
                log.info("Retrying of loading {name: %s version: %d}, retry: %d", name, version, attempt)
            else:
                return servable
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _unload(self, name: str, model: Model, version: int) -> None:
        """Unload a version once its last call has ended."""
        state = model.versions[version]
        with self._changed:
            state.stage = Stage.UNLOADING
            self._changed.notify_all()
            log.info("Unloading servable version {name: %s version: %d}", name, version)
            self._changed.wait_for(lambda: state.users == 0)
        if state.servable is not None:
            state.servable.close()
        self._set(model, version, VersionState(Stage.END))
        log.info("Done unloading servable version {name: %s version: %d}", name, version)

    def _set(self, model: Model, version: int, state: VersionState) -> None:
        with self._changed:
            model.versions[version] = state
            self._changed.notify_all()

    # Requests

    @contextlib.contextmanager
    def use(self, spec: Any) -> Iterator[Servable]:
        """Context manager: the version of a ModelSpec, kept loaded within the block."""
        with self._changed:
            state = self._find(spec)
            state.users += 1
        try:
            if state.servable is None:
                raise from_number(13, f"{spec.name} is available but not loaded")
            yield state.servable
        finally:
            with self._changed:
                state.users -= 1
                if state.users == 0:
                    self._changed.notify_all()

    def _find(self, spec: Any) -> VersionState:
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        choice = spec.WhichOneof("version_choice")
        model = self._models.get(spec.name)
        up = _available(model) if model else set()
        if choice is None:
            if model is None or not up:
                raise not_found(f"Servable not found for request: Latest({spec.name})")
            return model.versions[max(up)]
        version = spec.version.value if choice == "version" else self.labelled(spec.name, spec.version_label)
        if model is None or version not in up:
            raise not_found(f"Servable not found for request: Specific({spec.name}, {version})")
        return model.versions[version]

    def labelled(self, name: str, label: str) -> int:
        """The version that a label names.

        Raises:
            RequestError: no such label.

        """
        with self._changed:
            version = self._labels.get(name, {}).get(label)
        if version is None:
            raise invalid(f"Unrecognized servable version label: {label}")
        return version

    def states(self, name: str) -> dict[int, VersionState]:
        """A model's versions by number; empty for a model that isn't configured."""
        with self._changed:
            model = self._models.get(name)
            return dict(model.versions) if model else {}


def next_action(up: set[int], wanted: set[int], new: set[int]) -> tuple[str, int] | None:
    """The next version to unload or load.

    Source: TensorFlow Serving's availability_preserving_policy.cc.

    An unwanted version stays only while it is the only one, or the highest, and no wanted one is up yet; and where no
    version is wanted, such as one that is not on the volume, all are unloaded. The highest new version loads first.

    Args:
        up: versions that serve.
        wanted: versions that the policy picks from the folders there are.
        new: of the wanted, those that are neither up nor failed.

    Returns:
        "unload" or "load" and the version, or None.

    """
    unwanted = up - wanted
    if unwanted and (not wanted or up & wanted or len(unwanted) > 1):
        return "unload", min(unwanted)
    return ("load", max(new)) if new else None


def _available(model: Model) -> set[int]:
    return {version for version, state in model.versions.items() if state.stage is Stage.AVAILABLE}


def _aspired(name: str, config: Any) -> dict[int, Path]:
    """The versions that the model's policy picks among the folders there are."""
    if not config.base_path:
        return {}
    base = Path(config.base_path)
    if not base.exists():
        raise OSError(f"Could not find base path {base} for servable {name}")
    found = savedmodel.version_folders(base)
    policy = config.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "specific":
        wanted = {version: found[version] for version in policy.specific.versions if version in found}
        for version in set(policy.specific.versions) - set(wanted):
            log.warning(
                "Version %d of servable %s, which was requested to be served as a 'specific' version in the "
                "servable's version policy, was not found in the file system", version, name,
            )  # fmt: skip
    elif choice == "all":
        wanted = found
    else:
        count = max(1, policy.latest.num_versions)
        wanted = {version: found[version] for version in sorted(found)[-count:]}
    if not wanted:
        log.warning(
            "No versions of servable %s found under base path %s. Did you forget to name your leaf directory as a "
            "number (eg. '/1/')?", name, base,
        )  # fmt: skip
    return wanted
