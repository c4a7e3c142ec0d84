from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from clothing_gateway import __version__
from clothing_gateway.commands import cli
from clothing_gateway.image.decode import jpeg_decoder
from clothing_gateway.settings import ROWS, Settings


def run(*arguments, **environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "TF_SERVING"))}
    return subprocess.run(
        [sys.executable, "-m", "clothing_gateway", *map(str, arguments)],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--version"], ["serve", "--version"]])
def test_version(arguments):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (0, f"clothing-gateway {__version__} (JPEG: {jpeg_decoder()})\n")


@pytest.mark.parametrize("buffered", ["", "1"])
def test_closed_pipe_prints_no_traceback(buffered):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "clothing_gateway", "serve", "--print-config"],
        env=os.environ | {"PYTHONUNBUFFERED": buffered},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (cli.FAILED, "")


def test_print_config_shows_every_setting_and_its_source():
    done = run("serve", "--print-config", "--labels", "a,b", GATEWAY_MODEL_NAME="mine", GATEWAY_MODLE="x")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert "GATEWAY_LABELS=a,b  # flag" in lines
    assert "GATEWAY_MODEL_NAME=mine  # environment" in lines
    assert "TF_SERVING_HOST=localhost:8500  # default" in lines
    assert "GATEWAY_MODLE is not a setting" in done.stderr
    assert lines.pop() == f"# JPEG decoder: {jpeg_decoder()}"
    # What is printed can be given again.
    environment = dict(line.rsplit("  # ", 1)[0].split("=", 1) for line in lines)
    again, _, warnings = Settings.load(environment)
    assert again == Settings.load({"GATEWAY_LABELS": "a,b", "GATEWAY_MODEL_NAME": "mine"})[0]
    assert warnings == []


def test_invalid_settings_exit_with_2_and_are_all_named():
    done = run("serve", "--listen-port", "http", GATEWAY_LABELS="a,a")
    assert done.returncode == 2
    assert "error: --listen-port=http: must be a whole number" in done.stderr
    assert "error: GATEWAY_LABELS=a,a: labels must be there, and each only once: a" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["nothing"], ["classify"], ["serve", "--nothing"], ["classify", "a", "--top", "0"]]
)
def test_usage_error_exits_with_2(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_help_describes_every_setting():
    text = " ".join(run("serve", "--help").stdout.split())
    for row in ROWS:
        assert f"[{row.variable}," in text
        assert row.flag in text


def test_serve_logs_warnings(start_gateway, model_server):
    gateway = start_gateway(model_server.address, modle_name="x")
    line = next(json.loads(line) for line in gateway.log if "MODLE" in line)
    assert line["level"] == "warning"


def test_ctrl_c_during_a_request_prints_no_traceback(monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_classify", interrupted)
    assert cli.main(["classify", "photo.jpg"]) == 130
    assert capsys.readouterr().err == ""
