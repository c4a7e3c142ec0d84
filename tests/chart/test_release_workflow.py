"""The release workflow's own steps, as far as they run without GitHub."""

import os
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from charts import ROOT

WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yaml").read_text())
STEPS: dict[str, dict[str, Any]] = {step["name"]: step for step in WORKFLOW["jobs"]["charts"]["steps"] if "run" in step}


def shell(script: str, folder: Any = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """As GitHub runs it: bash, which stops at the first error."""
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_a_script_that_bash_reads(step):
    assert shell(f"bash -n <<'END'\n{STEPS[step]['run']}\nEND").stderr == ""


def test_a_tag_must_be_the_version_of_both_charts():
    script = STEPS["The tag is the charts' version"]["run"]
    version = yaml.safe_load((ROOT / "charts" / "ping" / "Chart.yaml").read_text())["version"]
    assert shell(script, GITHUB_REF_NAME=f"v{version}").returncode == 0
    wrong = shell(script, GITHUB_REF_NAME="v99.0.0")
    assert wrong.returncode == 1
    assert f"version is {version}, and the tag is v99.0.0" in wrong.stdout


needs_gpg = pytest.mark.skipif(not shutil.which("gpg"), reason="no gpg on the PATH, with which the key is made")


@pytest.mark.parametrize("signed", [False, pytest.param(True, marks=needs_gpg)])
def test_packages_are_signed_where_there_is_a_key(signed, tmp_path):
    for name in ("charts", "ci", ".tools", "CHANGELOG.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {"RUNNER_TEMP": str(tmp_path), "SIGNING_KEY": "", "SIGNING_KEY_NAME": "", "SOURCE_DATE_EPOCH": "0"}
    if signed:
        home = tmp_path / "gnupg"
        home.mkdir(mode=0o700)
        key = ["gpg", "--homedir", str(home), "--batch", "--pinentry-mode=loopback", "--passphrase="]
        subprocess.run([*key, "--quick-generate-key", "charts@example.com", "rsa2048"], check=True, capture_output=True)
        armoured = subprocess.run([*key, "--armor", "--export-secret-keys"], check=True, capture_output=True, text=True)
        environment |= {"SIGNING_KEY": armoured.stdout, "SIGNING_KEY_NAME": "charts@example.com"}
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)
    result = shell(STEPS["Package"]["run"], folder=tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    suffixes = sorted(file.suffix for file in (tmp_path / "dist").iterdir())
    assert suffixes == ([".prov", ".prov", ".tgz", ".tgz"] if signed else [".tgz", ".tgz"])
    assert not (tmp_path / "keyring").exists()
