"""chart-testing on the cluster, in a temporary repository with the current and the released chart."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import yaml
from kube import clusters

from processes import ROOT

# What ct compares with: REMOTE/BRANCH.
REMOTE, BRANCH = "ct", "previous"


def git(folder: Path, *arguments: str) -> str:
    """Run git with a neutral identity; returns its output."""
    identity = ["-c", "user.name=ct", "-c", "user.email=ct@example.com", "-c", "init.defaultBranch=main"]
    return clusters.run("git", "-C", str(folder), *identity, *arguments)


def released() -> str:
    """The commit to upgrade from: the last release or, before the first, the last commit."""
    command = ["git", "-C", str(ROOT), "describe", "--tags", "--abbrev=0", "--match=v[0-9]*"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "HEAD"


def repository(folder: Path, chart: str, values: Path) -> None:
    """A repository with one chart and one file of values, on the branch ct/previous as the chart was released.

    One of its own, so that ct finds something to upgrade from in any clone, and takes the working tree as it is.
    """
    git(folder, "init", "--quiet")
    git(folder, "checkout", "--quiet", "-b", f"{REMOTE}/{BRANCH}")
    archive = ["git", "-C", str(ROOT), "archive", released(), f"charts/{chart}"]
    files = subprocess.run(archive, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(files)) as tar:
        tar.extractall(folder, filter="data")
    _commit(folder / "charts" / chart, values)
    git(folder, "checkout", "--quiet", "-b", "main")
    shutil.rmtree(folder / "charts")
    shutil.copytree(ROOT / "charts" / chart, folder / "charts" / chart)
    _commit(folder / "charts" / chart, values)


def _commit(chart: Path, values: Path) -> None:
    for file in (chart / "ci").glob("*-values.yaml"):
        if file.name != values.name:
            file.unlink()
    if values.parent.name != "ci":
        shutil.copy(values, chart / "ci" / f"{values.stem}-values.yaml")
    git(chart, "add", "--all", ":/")
    git(chart, "commit", "--quiet", "--allow-empty", "--message", "charts")


def install(
    cluster: clusters.Cluster, folder: Path, namespace: str, settings: list[str], *options: str, helm: str
) -> str:
    """``ct install`` in the repository, with this Helm and the configuration of `make lint`; returns its output."""
    config = yaml.safe_load((ROOT / "ci/ct.yaml").read_text())
    for of_lint in ("chart-yaml-schema", "lint-conf", "additional-commands"):
        del config[of_lint]
    config |= {"remote": REMOTE, "target-branch": BRANCH, "namespace": namespace}
    config["helm-extra-set-args"] = " ".join(f"--set={setting}" for setting in settings)
    (folder / "ct.yaml").write_text(yaml.safe_dump(config))
    # ct knows no --context: a kubeconfig with nothing but this cluster's.
    kubeconfig = folder / "kubeconfig"
    kubeconfig.touch(0o600)
    kubeconfig.write_text(cluster.kubectl("config", "view", "--raw", "--minify", "--flatten"))
    environment = {**cluster.process_environment(), "KUBECONFIG": str(kubeconfig)}
    # ct runs whatever is called helm.
    (folder / "bin").mkdir()
    (folder / "bin/helm").symlink_to(ROOT / ".tools/bin" / helm)
    environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{environment['PATH']}"
    command = ["ct", "install", "--config", "ct.yaml", *options]
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise clusters.ClusterError(f"`{' '.join(command)}` ended with {done.returncode}\n{done.stdout}")
    return done.stdout
