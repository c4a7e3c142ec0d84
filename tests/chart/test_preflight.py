"""The look at the model before the server starts, in each shell that an image may have."""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from charts import CLASSIFIER, ROOT, run

SCRIPT = CLASSIFIER / "files" / "preflight.sh"
DEMO = ROOT / "model-image" / "demo-model" / "clothing-model"
SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)]


@pytest.fixture(params=SHELLS)
def preflight(request, tmp_path):
    def preflight(name: str, *versions: str):
        result = run(request.param, SCRIPT, tmp_path, name, *versions)
        return result.returncode, result.stdout, result.stderr.replace(str(tmp_path), "/models")

    return preflight


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "photos"
    shutil.copytree(DEMO, folder)
    return folder


def test_preflight_image_has_a_shell():
    assert SHELLS


def test_preflight_accepts_a_valid_model(preflight, model):
    assert preflight("photos") == (0, f"{model}/1 is there\n", "")


def test_preflight_checks_the_newest_version_only(preflight, model):
    shutil.copytree(model / "1", model / "20261122")
    shutil.copytree(model / "1", model / "9")
    (model / "notes").mkdir()
    (model / "1" / "saved_model.pb").unlink()
    assert preflight("photos")[:2] == (0, f"{model}/20261122 is there\n")


def test_preflight_checks_every_named_version(preflight, model):
    shutil.copytree(model / "1", model / "2")
    assert preflight("photos", "1", "2")[:2] == (0, f"{model}/1 is there\n{model}/2 is there\n")


def test_preflight_accepts_a_model_without_variables(preflight, model):
    shutil.rmtree(model / "1" / "variables")
    assert preflight("photos")[0] == 0


def wrong_name(model: Path) -> None:
    model.rename(model.parent / "pictures")


def no_version_folder(model: Path) -> None:
    (model / "1").rename(model / "v1")


def a_version_itself(model: Path) -> None:
    for file in (model / "1").iterdir():
        file.rename(model / file.name)


def nothing_at_all(model: Path) -> None:
    shutil.rmtree(model / "1")


def no_graph(model: Path) -> None:
    (model / "1" / "saved_model.pb").unlink()


def lfs_pointer(model: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4741329\n"
    (model / "1" / "variables" / "variables.data-00000-of-00001").write_text(pointer)


def no_index(model: Path) -> None:
    (model / "1" / "variables" / "variables.index").unlink()


def no_weights(model: Path) -> None:
    (model / "1" / "variables" / "variables.data-00000-of-00001").unlink()


def no_variables(model: Path) -> None:
    for file in (model / "1" / "variables").iterdir():
        file.unlink()


def cut_short(model: Path) -> None:
    (model / "1" / "saved_model.pb").write_bytes(b"")


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (
            wrong_name,
            "there is no folder /models/photos, and /models has: pictures. Set model.name to the folder's name",
        ),
        (
            no_version_folder,
            "/models/photos has no version folder, whose name is a number (1, 2, 20261122); it has: v1",
        ),
        (
            a_version_itself,
            "/models/photos is a version itself: move its files into a folder with a number, /models/photos/1",
        ),
        (
            nothing_at_all,
            "/models/photos has no version folder, whose name is a number (1, 2, 20261122); it has: nothing",
        ),
        (
            no_graph,
            # What comes next depends on whether the copy has kept an empty folder.
            "there is no /models/photos/1/saved_model.pb; /models/photos has: 1; /models/photos/1 has: assets",
        ),
        (
            lfs_pointer,
            "variables.data-00000-of-00001 is a Git LFS pointer, not the weights: run git lfs pull, and copy again",
        ),
        (no_index, "variables lacks variables.index or variables.data-…; it has: variables.data-00000-of-00001"),
        (no_weights, "variables lacks variables.index or variables.data-…; it has: variables.index"),
        (no_variables, "/models/photos/1/variables is empty: copy its content as well"),
        (cut_short, "/models/photos/1/saved_model.pb is empty: the copy was cut short, make it again"),
    ],
)
def test_preflight_states_the_cause(preflight, model, breaks, message):
    breaks(model)
    status, output, error = preflight("photos")
    assert (status, output) == (1, "")
    assert error.startswith("The model can't be served: ")
    assert message in error
    assert error.count("\n") == 1


def test_preflight_names_a_missing_version(preflight, model):
    status, _, error = preflight("photos", "1", "7")
    assert status == 1
    assert "there is no /models/photos/7/saved_model.pb; /models/photos has: 1" in error


@pytest.mark.parametrize("shell", SHELLS)
def test_preflight_names_unreadable_files(shell):
    # As root, who can read everything, the script runs as the chart's user; for that the folder must be anybody's.
    who = {"user": 65532, "group": 65532, "extra_groups": []} if os.getuid() == 0 else {}
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        graph = shutil.copytree(DEMO, Path(folder) / "photos") / "1" / "saved_model.pb"
        graph.chmod(0o600 if who else 0)
        script = shutil.copy(SCRIPT, folder)
        result = run(shell, script, folder, "photos", cwd=folder, **who)
    user, group = (65532, 65532) if who else (os.getuid(), os.getgid())
    assert result.returncode == 1
    assert f"user {user} can't read {graph}: give it to group {group}, or make it readable for all" in result.stderr
