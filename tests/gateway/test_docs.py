"""The gateway's README and OpenAPI document agree with the code."""

from __future__ import annotations

import argparse
import ast
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from fakes import LABELS, image_bytes
from openapi_spec_validator import validate

import clothing_gateway
from clothing_gateway.commands import cli
from clothing_gateway.errors import all_errors, from_status
from clothing_gateway.settings import ROWS
from clothing_gateway.telemetry.metrics import Metrics
from clothing_gateway.web.admin import ROUTES as ADMIN_ROUTES
from clothing_gateway.web.app import ROUTES

GATEWAY = Path(__file__).parents[2] / "gateway"
README = (GATEWAY / "README.md").read_text()
DOCUMENT = yaml.safe_load((GATEWAY / "src/clothing_gateway/web/openapi.yaml").read_text())


def rows(heading):
    """The cells of the first table under a heading."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_setting_has_a_unit_and_a_reason(row):
    assert len(row.reason) > 15
    assert row.unit
    for word in ("seconds", "bytes", "pixels"):
        if row.name.endswith(word):
            assert row.unit == word


def test_every_error_is_in_the_table():
    expected = {f"`{error.code}`": (str(error.status), str(error.retry_after or "")) for error in all_errors()}
    assert {row[1]: (row[0], row[3]) for row in rows("Errors")} == expected


def test_every_metric_is_in_the_table():
    expected = {}
    for family in Metrics("").registry.collect():
        if family.name.startswith("gateway_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            expected[f"`{name}`"] = [family.type, family.documentation]
    assert {row[0]: row[1:] for row in rows("Metrics")} == expected


def test_error_codes_are_unique_and_the_docstring_draws_the_tree():
    errors = list(all_errors())
    assert len({error.code for error in errors}) == len(errors)
    drawn = re.findall(r"([A-Z]\w+) +(\d{3})  ([a-z-]+)", clothing_gateway.errors.__doc__)
    assert drawn == [(error.__name__, str(error.status), error.code) for error in errors]
    for error in errors:
        assert error.detail.endswith(".") or error.detail.endswith("….")
        assert len(error.detail.split()) <= 12, error.detail
        assert error.title
        assert (error.retry_after is not None) == (error.status in (429, 503))


def messages(room):
    """The sentences that a room of the source gives to errors, with where they are."""
    names = {"Malformed", *(error.__name__ for error in all_errors())} - {"MethodNotAllowed"}
    for file in sorted((GATEWAY / "src/clothing_gateway" / room).glob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.args:
                first = call.args[0]
                parts = first.values if isinstance(first, ast.JoinedStr) else [first]
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "N" for part in parts)
                if call.func.id in names and " " in text:
                    yield f"{file.name}:{call.lineno}", text


@pytest.mark.parametrize("room", ["fetch", "web"])
def test_messages_to_clients_are_short(room):
    found = dict(messages(room))
    assert len(found) > 5
    assert {place: text for place, text in found.items() if len(text.split()) > 12 or not text.endswith(".")} == {}


@pytest.mark.parametrize("status", range(400, 600))
def test_each_status_of_the_layers_below_has_an_error(status):
    error = from_status(status)
    assert error.status == (status if status in (400, 404, 405, 413, 415, 431, 501) else 400 if status < 500 else 500)


def test_the_document_is_openapi():
    validate(DOCUMENT)


def test_the_document_agrees_with_the_routes():
    routes = {(route.path, route.method.lower()) for route in ROUTES}
    documented = {(path, method) for path, item in DOCUMENT["paths"].items() for method in item}
    assert routes == documented


def test_every_route_is_in_the_readme():
    text = README.split("\n## Routes\n", 1)[1].split("\n## ", 1)[0]
    for path, item in DOCUMENT["paths"].items():
        for method in item:
            assert f"`{method.upper()} {path}" in text
    for path in ADMIN_ROUTES:
        assert f"`GET {path}`" in text


def commands():
    """Each command's parser."""
    (action,) = (action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction))
    return action.choices


def test_every_command_is_in_the_readme_and_no_other():
    text = README.split("\n## Quick start\n", 1)[1].split("\n## ", 1)[0]
    assert set(re.findall(r"^\| `clothing-gateway ([a-z]+)", text, re.MULTILINE)) == set(commands())


@pytest.mark.parametrize("command", [name for name in commands() if name != "serve"])
def test_every_option_of_a_command_is_in_its_section_and_no_other(command):
    section = README.split(f"\n## {command.capitalize()}\n", 1)[1].split("\n## ", 1)[0]
    settings = {row.flag for row in ROWS}
    options = {
        option for action in commands()[command]._actions for option in action.option_strings if option.startswith("--")
    }
    assert set(re.findall(r"--[a-z][a-z-]+", section)) - settings == options - settings - {"--help"}


def test_the_programs_example_works(model_server, start_gateway, tmp_path, monkeypatch, capsys):
    section = README.split("\n## Python client\n", 1)[1]
    example = section.split("```python\n", 1)[1].split("```", 1)[0]
    (tmp_path / "pants.jpg").write_bytes(image_bytes())
    monkeypatch.chdir(tmp_path)
    gateway = start_gateway(model_server.address)
    exec(example.replace("localhost:9696", f"127.0.0.1:{gateway.port}"))
    label, probability, version, request_id = capsys.readouterr().out.split()
    assert label in LABELS
    assert 0 < float(probability) < 1
    assert (version, len(request_id)) == ("1", 32)


def test_every_module_is_in_the_readme():
    table = README.split("\n## Development\n", 1)[1]
    source = GATEWAY / "src/clothing_gateway"
    modules = {file.stem for file in source.rglob("*.py")} - {"__init__", "__main__"}
    for room in source.rglob("__init__.py"):
        assert room.parent == source or f"`{room.parent.name}/`" in table, room
    for name in modules:
        assert f"`{name}`" in table, name


def test_every_check_of_the_doctor_is_in_the_readme():
    files = (GATEWAY / "src/clothing_gateway/commands/doctor").glob("*.py")
    checks = {name for file in files for name in re.findall(r'Finding\(\s*"([a-z]+)"', file.read_text())}
    section = README.split("\n## Doctor\n", 1)[1].split("\n| option |", 1)[0]
    first_cells = re.findall(r"^\| (`.+?) \|", section, re.MULTILINE)
    assert {name for cell in first_cells for name in re.findall("`([a-z]+)`", cell)} == checks


def test_the_version_is_in_one_place():
    assert metadata.version("clothing-gateway") == clothing_gateway.__version__ == DOCUMENT["info"]["version"]
    assert "version" in tomllib.loads((GATEWAY / "pyproject.toml").read_text())["project"]["dynamic"]
    assert f"ARG VERSION={clothing_gateway.__version__}" in (GATEWAY / "Dockerfile").read_text()


def locked(name):
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ;\\]+)", (GATEWAY / name).read_text(), re.MULTILINE))


def test_the_locks_agree_and_hold_what_is_needed():
    runtime, development = locked("requirements.lock"), locked("requirements-dev.lock")
    assert runtime.items() <= development.items()
    project = tomllib.loads((GATEWAY / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["otel"]
    assert {re.match(r"[a-z0-9-]+", one)[0] for one in wanted} - {"clothing-contract"} <= set(runtime)
    assert "tensorflow" not in runtime
    for name in ("requirements.lock", "requirements-dev.lock", "jpeg/requirements-build.lock"):
        text = (GATEWAY / name).read_text()
        assert "--index-url" not in text
        assert "http" not in text
        pinned = re.findall(r"^[a-z0-9.-]+==[^\n]*\n +--hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
        assert len(pinned) == len(re.findall(r"^[a-z0-9]", text, re.MULTILINE))


def test_package_sizes_match_the_documentation():
    """120 MB in the image, which leaves some files out; another package of 30 MB would be noticed."""
    megabytes = sum(
        distribution.locate_file(file).stat().st_size / 1e6
        for distribution in map(metadata.distribution, locked("requirements.lock"))
        for file in distribution.files
        if file.suffix != ".pyc" and distribution.locate_file(file).is_file()
    )
    assert 90 < megabytes < 140


def test_package_is_marked_as_typed():
    assert (GATEWAY / "src/clothing_gateway/py.typed").exists()
