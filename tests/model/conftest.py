"""Generated models, converted once for the session, and real `clothing-model serve` processes to ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import MODELS, Made, Server, Starter, starter

from clothing_model.commands.cli import main
from clothing_model.quiet import quiet_tensorflow
from model_factory import make_model

quiet_tensorflow()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """Each kind of file, converted by the command into models/NAME/1."""
    folder = tmp_path_factory.mktemp("converted")
    made = {}
    for seed, (name, (kind, input_name, output_name, size, classes)) in enumerate(MODELS.items()):
        source = make_model(folder / "made" / name, kind, input_name, output_name, size, classes, seed)
        assert main(["convert", str(source), "--name", name, "--output", str(folder / "models")]) == 0
        version = folder / "models" / name / "1"
        made[name] = Made(name, kind, input_name, output_name, size, classes, source, version)
    return made


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Starter]:
    """Starts servers that end with the test."""
    with starter(tmp_path) as start:
        yield start


@pytest.fixture(scope="session")
def server(models: dict[str, Made], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with all the models, health and metrics, for the tests that only ask."""
    folder = tmp_path_factory.mktemp("server")
    config = "".join(
        f'config {{ name: "{made.name}" base_path: "{made.version.parent}" model_platform: "tensorflow" }}\n'
        for made in models.values()
    )
    (folder / "models.config").write_text(f"model_config_list {{\n{config}}}\n")
    (folder / "monitoring.config").write_text("prometheus_config { enable: true }\n")
    with starter(folder) as start:
        yield start(
            f"--model_config_file={folder / 'models.config'}",
            f"--monitoring_config_file={folder / 'monitoring.config'}",
            "--enable_grpc_healthcheck_service=true",
            "--grpc_max_threads=64",
            "--file_system_poll_wait_seconds=0",
            "--max_num_load_retries=0",
            "--enable_profiler=false",
        ).wait_until_up()
