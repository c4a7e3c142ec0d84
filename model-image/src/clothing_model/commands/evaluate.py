"""`clothing-model evaluate`: measures a model, or a gateway, on labelled photos."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clothing_contract import PREPROCESSINGS
from clothing_model.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clothing_model.evaluation.classifiers import Options


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``evaluate`` command."""
    parser = subparsers.add_parser(
        "evaluate",
        description="Accuracy, precision and recall of each class, confusion, calibration and latency of a model on a "
        "folder of photos (a folder per class). Exits with 1 where a photo could not be classified.",
    )
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="labelled photos: a folder per class")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", metavar="PATH", help="a SavedModel: a version's folder, or the one around it")
    model.add_argument("--gateway", metavar="URL", help="a running gateway, as http://localhost:9696")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the confusion matrix and the calibration")
    add_model_options(parser)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for what a model's files leave out, shared with ``diff``."""
    parser.add_argument(
        "--labels", metavar="LABELS", help="the classes in the output's order, where the SavedModel has none noted"
    )
    parser.add_argument(
        "--preprocessing", choices=PREPROCESSINGS, help="a SavedModel's (default: as noted in it, else tf)"
    )
    parser.add_argument("--image-size", metavar="N|WxH", help="the photo's size, for a SavedModel that leaves it open")
    parser.add_argument(
        "--parallel", type=int, default=4, metavar="N", help="photos in flight to a gateway (default: 4)"
    )


def model_options(args: argparse.Namespace) -> Options:
    """The options that ``add_model_options`` added, parsed.

    Raises:
        ModelError: an option that can't be used.

    """
    from clothing_model.commands.options import image_size, read_labels
    from clothing_model.evaluation.classifiers import Options

    if not 1 <= args.parallel <= 64:
        raise ModelError(f"--parallel={args.parallel}: give a number from 1 to 64")
    labels = read_labels(args.labels) if args.labels else None
    return Options(labels, args.preprocessing, image_size(args.image_size), args.parallel)


def check_json(path: Path | None) -> None:
    """Reject a path that can't be written, before the work starts."""
    if path is not None and not path.parent.is_dir():
        raise ModelError(f"--json {path}: there is no folder {path.parent}; make it first")


def say_failed(failed: dict[str, str]) -> None:
    """Print the first few photos that could not be classified."""
    for photo, reason in list(failed.items())[:10]:
        print(f"not classified: {photo}: {reason}", file=sys.stderr)
    if len(failed) > 10:
        print(f"not classified: {len(failed) - 10} more", file=sys.stderr)


def run(args: argparse.Namespace) -> int:
    """Run the ``evaluate`` command.

    Raises:
        ModelError: photos, model or gateway that can't be used.

    """
    from clothing_model.evaluation import classifiers, dataset, metrics, plots
    from clothing_model.progress import Progress

    plots.check(args.png)
    check_json(args.json)
    options = model_options(args)
    data = dataset.find_photos(args.photos)
    progress = Progress()
    classifier = classifiers.open_classifier(args.model or _address(args.gateway), options, data.labels)
    progress.say(f"classifying {len(data.paths)} photos of {len(data.labels)} classes by {classifier.name}")
    scored = classifiers.score(classifier, data.paths, lambda done, of: progress.count("classified", done, of))
    targets = in_labels(data, classifier)[scored.index]
    failed = {str(data.paths[number].relative_to(args.photos)): why for number, why in scored.failed.items()}
    report = {
        "classifier": classifier.name,
        "photos_sha256": data.sha256(),
        **figures(classifier.labels, targets, scored.scores, scored.probabilities, scored.held),
        "latency_ms": {step: metrics.latency(seconds) for step, seconds in scored.seconds.items()},
        "photos_per_second": len(scored.index) / scored.wall_seconds,
        "parallel": classifier.parallel,
        "model": classifier.facts(),
        "failed": failed,
    }
    print(as_text(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if args.png:
        title = f"{classifier.name}: accuracy {report['accuracy']:.3f} of {report['photos']} photos"
        bins = [metrics.Bin(**each) for each in report["calibration"]["bins"]]
        plots.evaluation(args.png, title, classifier.labels, _table(report), bins)
        progress.say(f"wrote {args.png}")
    say_failed(failed)
    return 1 if failed else 0


def _address(gateway: str) -> str:
    if "://" not in gateway:
        raise ModelError(f"--gateway {gateway}: give its whole address, as http://localhost:9696")
    return gateway


def _table(report: dict[str, Any]) -> NDArray[np.int64]:
    import numpy as np

    return np.array(report["confusion"], np.int64)


def in_labels(data: Any, classifier: Any) -> NDArray[np.int64]:
    """The photos' classes as indices into the classifier's labels.

    The order of the folders has no influence.
    """
    import numpy as np

    if unknown := [label for label in data.labels if label not in classifier.labels]:
        raise ModelError(
            f"the photos' classes {', '.join(unknown)} are none of the model's ({', '.join(classifier.labels)}): "
            "rename the folders, or give the model's labels with --labels"
        )
    order = np.array([classifier.labels.index(label) for label in data.labels], np.int64)
    targets: NDArray[np.int64] = order[data.targets]
    return targets


def figures(
    labels: tuple[str, ...],
    targets: NDArray[np.int64],
    scores: NDArray[np.float32],
    probabilities: NDArray[np.float64],
    held: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """All figures computed from the scores, as JSON.

    A photo's class is the one label above the threshold, else the best. A folder says one label of its photos, so that
    of the labels ``held`` beside it nothing is known: only how many they are is given, and how often its own is one.
    """
    import numpy as np

    from clothing_model.evaluation import metrics

    found = scores.argmax(axis=1)
    own: NDArray[np.bool_] | None = None
    if held is not None:
        found = np.where(held.sum(axis=1) == 1, held.argmax(axis=1), found)
        own = held[np.arange(len(targets)), targets]
    right = found == targets
    table = metrics.confusion(targets, found, len(labels))
    confidence = probabilities.max(axis=1)
    bins = metrics.reliability(confidence, right)
    precision, recall = metrics.precisions(table), metrics.recalls(table)
    second_best = (-scores).argsort(axis=1, kind="stable")[:, :2]
    return {
        "photos": len(targets),
        "accuracy": float(right.mean()),
        "top2_accuracy": float((second_best == targets[:, None]).any(axis=1).mean()),
        "classes": {
            label: {
                "photos": int(table[index].sum()),
                "precision": _or_none(precision[index]),
                "recall": _or_none(recall[index]),
                **({} if own is None else {"above_threshold": _or_none(_mean(own[targets == index]))}),
            }
            for index, label in enumerate(labels)
        },
        "labels": list(labels),
        "confusion": table.tolist(),
        **({} if own is None or held is None else {"above_threshold": _above(own, held)}),
        "calibration": {
            "mean_confidence": float(confidence.mean()),
            "expected_calibration_error": metrics.expected_calibration_error(bins),
            "bins": [asdict(each) for each in bins],
        },
    }


def _mean(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _above(own: NDArray[np.bool_], held: NDArray[np.bool_]) -> dict[str, float]:
    return {"own_label": _mean(own), "labels_per_photo": float(held.sum(axis=1).mean())}


def _or_none(share: float) -> float | None:
    return None if math.isnan(share) else float(share)


def as_text(report: dict[str, Any]) -> str:
    """The report as text."""
    spread = 1.96 * math.sqrt(report["accuracy"] * (1 - report["accuracy"]) / report["photos"])
    lines = [
        f"accuracy {report['accuracy']:.3f} ({report['photos']} photos; ±{spread:.3f} at 95 %), "
        f"among the two best {report['top2_accuracy']:.3f}",
        "",
        *_classes(report["classes"]),
        "",
        *_threshold(report.get("above_threshold")),
        *_confusion(report["labels"], report["confusion"]),
        "",
        *_calibration(report["calibration"]),
        "",
    ]
    for step, ms in report["latency_ms"].items():
        lines.append(f"{step:<8} p50 {ms['p50']:.1f} ms, p99 {ms['p99']:.1f} ms, max {ms['max']:.1f} ms")
    retries = report["model"].get("retries", 0)
    lines.append(
        f"{report['photos_per_second']:.1f} photos per second, {report['parallel']} in flight"
        + (f", {retries} asked again" if retries else "")
    )
    for model, count in report["model"].get("models", {}).items():
        lines.append(f"answered by {model}: {count}")
    return "\n".join(lines)


def _classes(classes: dict[str, dict[str, Any]]) -> list[str]:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    width = max(len("class"), *map(len, classes))
    return [
        f"{'class':<{width}} {'photos':>7} {'precision':>9} {'recall':>7}",
        *(
            f"{label:<{width}} {row['photos']:>7} {share(row['precision']):>9} {share(row['recall']):>7}"
            for label, row in classes.items()
        ),
    ]


def _threshold(above: dict[str, float] | None) -> list[str]:
    if above is None:
        return []
    return [
        f"above the threshold: its own label of {above['own_label']:.3f} of the photos, "
        f"{above['labels_per_photo']:.2f} labels a photo",
        "",
    ]


def _confusion(labels: list[str], table: list[list[int]]) -> list[str]:
    """The confusion matrix as text lines; columns are headed by the rows' numbers.

    So long labels and many classes fit.
    """
    width = max(len(label) for label in labels) + 4
    cell = max(4, len(str(max(max(row) for row in table))) + 1)
    return [
        "true class (row), class found (column)",
        " " * width + "".join(f"{number:>{cell}}" for number in range(1, len(labels) + 1)),
        *(
            f"{number:>3} {label:<{width - 4}}" + "".join(f"{count or '.':>{cell}}" for count in row)
            for number, (label, row) in enumerate(zip(labels, table, strict=True), start=1)
        ),
    ]


def _calibration(calibration: dict[str, Any]) -> list[str]:
    error = calibration["expected_calibration_error"]
    return [
        f"calibration: mean best probability {calibration['mean_confidence']:.3f}, "
        f"expected calibration error {error:.3f}",
        f"{'probability':<12} {'photos':>7} {'mean':>7} {'right':>7}",
        *(
            f"{each['low']:.1f} to {each['high']:.1f}{'':<2} {each['photos']:>7} {each['confidence']:>7.3f} "
            f"{each['accuracy']:>7.3f}"
            for each in calibration["bins"]
        ),
    ]
