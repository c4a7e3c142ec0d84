"""`make model-image`: converts and verifies a model, and builds its image.

    python scripts/model_image.py models/kitchen.keras --tag kitchen-model:1 --labels cup,fork,glass,knife,plate,spoon

Takes what `clothing-model convert` takes, and stops where `verify` finds an error. The image is built by the first
that runs of Docker, Podman and buildah (as root by tests/cluster, which finds a base image without a registry);
--builder names another command. Only the chart's values for the model are printed to stdout, to write into a file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from clothing_model import savedmodel
from clothing_model.commands import cli
from clothing_model.errors import ModelError

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "model-image"
CLUSTER = Path(os.environ.get("E2E_CLUSTER", ROOT / "tests/cluster/cluster"))
# What the Dockerfiles copy, beside the model.
SOURCES = (
    "contract/src", "model-image/src", "model-image/pyproject.toml", "model-image/README.md",
    "model-image/requirements.lock", ".dockerignore",
)  # fmt: skip
# Options that are passed on to `convert`.
CONVERT = (
    "labels", "preprocessing", "mean", "std", "channels", "fit", "shorter-side", "resampling", "exif-orientation",
    "scores", "image-size", "input", "weights", "warmup", "input-name", "output-name",
)  # fmt: skip
REFERENCE = re.compile(r"(?P<repository>[a-z0-9][a-z0-9._:/-]*?):(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127})")


def say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


def builder(wanted: str) -> list[str]:
    """The command that builds, up to its options."""
    if wanted:
        command = shlex.split(wanted)
        if shutil.which(command[0]) is None:
            raise ModelError(f"BUILDER={wanted}: there is no {command[0]} on the PATH")
        return command
    asleep = []
    for tool in ("docker", "podman"):
        if shutil.which(tool) is not None:
            if subprocess.run([tool, "info"], capture_output=True, check=False).returncode == 0:
                return [tool, "build"]
            asleep.append(tool)
    if shutil.which("buildah") is not None:
        if CLUSTER.is_file() and os.geteuid() == 0:
            return [str(CLUSTER), "build", "--layers"]
        return ["buildah", "build", "--layers"]
    raise ModelError(
        f"`{' info` and `'.join(asleep)} info` fail: start the engine, or see whether this user may use it"
        if asleep
        else "an image is built by Docker, Podman or buildah, and none of them is on the PATH: install one of them"
    )


def model_of(args: argparse.Namespace, models: Path, name: str) -> Path:
    """The model as a verified version folder below ``models``."""
    source = Path(args.model)
    options = [f"--{key}={value}" for key in CONVERT if (value := getattr(args, key.replace("-", "_")))]
    if args.trust:
        options.append("--trust")
    number = savedmodel.read(source).version if source.is_dir() else None
    if args.version or number:
        options.append(f"--version={args.version or number}")
    say(f"converting {source}")
    code = cli.main(["convert", str(source), f"--name={name}", f"--output={models}", *options])
    if code == 0:
        say("verifying")
        with contextlib.redirect_stdout(sys.stderr):
            code = cli.main(["verify", str(models), f"--name={name}"])
    if code:
        raise ModelError(f"{source} makes no model that can be served: no image was built")
    return savedmodel.locate(models / name)


def labels_of(version: Path, reference: re.Match[str]) -> dict[str, str]:
    """The image's OCI annotations, from what is known of the model."""
    known = savedmodel.read(version).description
    accuracy = known.get("metrics", {}).get("validation_accuracy")
    classes = known.get("labels", ())
    source = known["source"].get("made_from", known["source"])
    found = {
        "org.opencontainers.image.title": known["name"],
        "org.opencontainers.image.version": reference["tag"],
        "org.opencontainers.image.description": f"TensorFlow Serving with the model {known['name']}, version "
        f"{version.name}" + (f": {len(classes)} classes" if classes else ""),
        "clothing-model.name": known["name"],
        "clothing-model.version": version.name,
        "clothing-model.source": source["file"],
        "clothing-model.source.sha256": source["sha256"],
        "clothing-model.library": known.get("library", ""),
        "clothing-model.tensorflow": known.get("tensorflow", ""),
        "clothing-model.signature": json.dumps(known["signature"], separators=(",", ":")),
        "clothing-model.labels": ",".join(classes),
        "clothing-model.preprocessing": known.get("preprocessing", ""),
        "clothing-model.validation-accuracy": "" if accuracy is None else f"{accuracy:.3f}",
    }
    return {key: value for key, value in found.items() if value}


def build(args: argparse.Namespace) -> None:
    """Convert, verify, build, and print the next steps."""
    reference = REFERENCE.fullmatch(args.tag)
    if reference is None or reference["tag"] == "latest":
        raise ModelError(
            f"TAG={args.tag}: give a name and a version, as kitchen-model:1 or registry.example.com/kitchen-model:1; "
            "`latest` would not tell one model from the next"
        )
    name = args.name or reference["repository"].rsplit("/", 1)[-1]
    command = builder(args.builder)
    portable = args.portable
    if not portable and platform.machine() not in ("x86_64", "AMD64"):
        say(f"TensorFlow Serving's image is for x86-64, and this is {platform.machine()}: taking the portable server")
        portable = True
    with tempfile.TemporaryDirectory(prefix="model-image-") as folder:
        context = Path(folder)
        version = model_of(args, context / "models", name)
        for part in SOURCES:
            (context / part).parent.mkdir(exist_ok=True)
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, context / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            else:
                shutil.copyfile(ROOT / part, context / part)
        dockerfile = FOLDER / ("Dockerfile.portable" if portable else "Dockerfile")
        arguments = {"MODEL_DIR": f"models/{name}", "MODEL_NAME": name}
        if args.base:
            arguments["PYTHON_IMAGE" if portable else "TF_SERVING_IMAGE"] = args.base
        command += ["--file", str(dockerfile), "--tag", args.tag]
        command += [word for item in arguments.items() for word in ("--build-arg", "=".join(item))]
        command += [word for item in labels_of(version, reference).items() for word in ("--label", "=".join(item))]
        say(f"building {args.tag} from {dockerfile.relative_to(ROOT)} with `{shlex.join(command[:2])}`")
        done = subprocess.run([*command, str(context)], stdout=sys.stderr, check=False)
        if done.returncode:
            raise ModelError(
                f"`{shlex.join(command[:2])}` ended with {done.returncode}; its last lines say why. "
                "Where the base image could not be pulled, name a mirror's with BASE=…"
                + ("" if portable else ", or take the portable server with PORTABLE=1")
            )
        say(f"{args.tag} is built. The chart's values for it:")
        cli.main(["values", str(version), "--image", args.tag])
    say("next: push it (`docker push`, on Kind `kind load docker-image`), and give these values to `helm install`")


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="model_image", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a Keras file, or a SavedModel's folder (of its versions the newest)")
    parser.add_argument("--tag", required=True, help="the image, as kitchen-model:1")
    parser.add_argument("--name", default="", help="the model's name (default: the image's)")
    parser.add_argument("--version", default="", help="the model's version (default: that of the folder, or 1)")
    for option in CONVERT:
        parser.add_argument(f"--{option}", default="", help=f"as of `clothing-model convert --{option}`")
    parser.add_argument("--trust", action="store_true", help="as of `clothing-model convert --trust`")
    parser.add_argument("--portable", action="store_true", help="on the portable server, for arm64 and tests")
    parser.add_argument("--base", default="", help="another base image: a mirror, a digest, …-gpu")
    parser.add_argument("--builder", default="", help="the command that builds, as 'docker buildx build --load'")
    try:
        build(parser.parse_args())
    except ModelError as error:
        print(f"model-image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
