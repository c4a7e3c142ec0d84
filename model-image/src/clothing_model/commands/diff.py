"""`clothing-model diff`: compares two versions of a model before a promotion."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clothing_model.commands.evaluate import add_model_options, check_json, model_options, say_failed
from clothing_model.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clothing_model.evaluation.plots import Captioned

# Photos on the contact sheet: more are not read.
SHEET = 48
SHOWN = 10


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``diff`` command."""
    parser = subparsers.add_parser(
        "diff",
        description="Compare the predictions of two versions of a model on a folder of photos: agreement, accuracy "
        "where photos are labelled, the largest differences, and a picture of the photos whose class changed. "
        "Exits with 1 where more changed than --max-changed allows, or a photo could not be classified.",
    )
    parser.add_argument("old", metavar="OLD", help="a SavedModel's folder, or a running gateway's http://…")
    parser.add_argument("new", metavar="NEW", help="the version to promote, in the same form")
    parser.add_argument(
        "photos", type=Path, metavar="PHOTOS", help="photos: a folder per class, or without classes in any folders"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write scores and differences of each photo as JSON")
    parser.add_argument(
        "--png", type=Path, metavar="FILE", help=f"draw the photos that changed, the {SHEET} that changed most"
    )
    parser.add_argument(
        "--max-changed", type=float, metavar="PERCENT", help="exit with 1 if the class of more photos than this changed"
    )
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the ``diff`` command.

    Raises:
        ModelError: photos, models or gateways that can't be used.

    """
    from clothing_model.evaluation import classifiers, plots
    from clothing_model.progress import Progress

    plots.check(args.png)
    check_json(args.json)
    if args.max_changed is not None and not 0 <= args.max_changed <= 100:
        raise ModelError(f"--max-changed={args.max_changed}: give percent, from 0 to 100")
    options = model_options(args)
    folders = _class_folders(args.photos)
    old, new = (classifiers.open_classifier(each, options, folders) for each in (args.old, args.new))
    paths = _photos(args.photos)
    progress = Progress()
    scored = []
    for classifier in (old, new):
        progress.say(f"classifying {len(paths)} photos by {classifier.name}")
        scored.append(classifiers.score(classifier, paths, lambda done, of: progress.count("classified", done, of)))
    failed = {_name(paths[number], args.photos): why for each in scored for number, why in each.failed.items()}
    both = [number for number in range(len(paths)) if not any(number in each.failed for each in scored)]
    if not both:
        raise ModelError(f"{args.photos}: none of {len(paths)} photos was classified by both")
    rows = [[list(each.index).index(number) for number in both] for each in scored]
    kept = [(each.scores[at], each.probabilities[at]) for each, at in zip(scored, rows, strict=True)]
    names = [_name(paths[number], args.photos) for number in both]
    truth = _truth([paths[number] for number in both], args.photos, folders, {*old.labels, *new.labels})
    scores, probabilities = zip(*kept, strict=True)
    report = compare(names, truth, (old.labels, new.labels), scores, probabilities)
    report = {
        "old": {"classifier": old.name, **old.facts()},
        "new": {"classifier": new.name, **new.facts()},
        **report,
        "failed": failed,
    }
    print(as_text(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if args.png:
        changed = [each for each in report["details"] if each["old"]["label"] != each["new"]["label"]]
        title = f"{len(changed)} of {len(both)} photos changed their class"
        if len(changed) > SHEET:
            title += f"; the {SHEET} that changed most"
        plots.contact_sheet(args.png, title, [_captioned(each, args.photos) for each in changed[:SHEET]])
        progress.say(f"wrote {args.png}")
    say_failed(failed)
    too_many = args.max_changed is not None and 100 * report["changed"] / report["photos"] > args.max_changed
    if too_many:
        share = 100 * report["changed"] / report["photos"]
        print(f"changed: {share:.2f} %, more than --max-changed {args.max_changed:g}", file=sys.stderr)
    return 1 if failed or too_many else 0


def _class_folders(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; give one that holds photos")
    return tuple(sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")))


def _photos(folder: Path) -> tuple[Path, ...]:
    from clothing_model.evaluation.dataset import SUFFIXES

    found = tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()))
    if not found:
        raise ModelError(f"{folder}: holds no photos ({', '.join(sorted(SUFFIXES))})")
    return found


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _truth(paths: list[Path], folder: Path, folders: tuple[str, ...], labels: set[str]) -> list[str] | None:
    """True class of each photo, by its folder; None unless every folder is a class."""
    if not folders or not labels.issuperset(folders) or any(path.parent == folder for path in paths):
        return None
    return [path.relative_to(folder).parts[0] for path in paths]


def compare(
    names: list[str],
    truth: list[str] | None,
    labels: tuple[tuple[str, ...], tuple[str, ...]],
    scores: tuple[NDArray[np.float32], ...],
    chances: tuple[NDArray[np.float64], ...],
) -> dict[str, Any]:
    """Compare scores and probabilities, as JSON; largest difference first."""
    import numpy as np

    common = [label for label in labels[0] if label in labels[1]]
    if not common:
        raise ModelError(f"the two have no label in common: {', '.join(labels[0])}; {', '.join(labels[1])}")
    columns = [[each.index(label) for label in common] for each in labels]
    best = [[each[index] for index in found.argmax(axis=1)] for each, found in zip(labels, scores, strict=True)]
    by_chance = np.abs(chances[1][:, columns[1]] - chances[0][:, columns[0]])
    by_score = np.abs(scores[1][:, columns[1]] - scores[0][:, columns[0]])
    details = []
    for number in np.argsort(-by_chance.max(axis=1), kind="stable"):
        most = int(by_chance[number].argmax())
        entry: dict[str, Any] = {"photo": names[number], "truth": truth[number] if truth else None}
        for which, key in enumerate(("old", "new")):
            entry[key] = {
                "label": best[which][number],
                "probability": float(chances[which][number].max()),
                "scores": dict(zip(labels[which], map(float, scores[which][number]), strict=True)),
            }
        entry["largest_difference"] = {
            "label": common[most],
            "old": float(chances[0][number, columns[0][most]]),
            "new": float(chances[1][number, columns[1][most]]),
        }
        details.append(entry)
    changed = [each for each in details if each["old"]["label"] != each["new"]["label"]]
    report: dict[str, Any] = {
        "photos": len(names),
        "changed": len(changed),
        "agreement": 1 - len(changed) / len(names),
        "labels_only_in_old": [label for label in labels[0] if label not in labels[1]],
        "labels_only_in_new": [label for label in labels[1] if label not in labels[0]],
        "same_order": labels[0] == labels[1],
        "largest_score_difference": float(by_score.max()),
        "largest_probability_difference": float(by_chance.max()),
        "accuracy": None,
        "details": details,
    }
    if truth:
        report["accuracy"] = {
            "old": sum(each["old"]["label"] == each["truth"] for each in details) / len(names),
            "new": sum(each["new"]["label"] == each["truth"] for each in details) / len(names),
            "mended": sum(each["new"]["label"] == each["truth"] for each in changed),
            "broken": sum(each["old"]["label"] == each["truth"] for each in changed),
        }
    return report


def as_text(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = [f"old  {report['old']['classifier']}", f"new  {report['new']['classifier']}"]
    for fact in ("input", "output", "preprocessing"):
        before, after = report["old"].get(fact), report["new"].get(fact)
        if before and after and before != after:
            lines.append(f"{fact}: {before} -> {after}")
    lines += [
        f"labels only in the {which} one: {', '.join(only)}"
        for which in ("old", "new")
        if (only := report[f"labels_only_in_{which}"])
    ]
    if not report["same_order"] and "input" in report["old"] and "input" in report["new"]:
        lines.append("the labels' order differs: GATEWAY_LABELS (the chart's model.labels) must change with the model")
    lines += [
        "",
        f"agreement {report['agreement']:.3f}: the class of {report['changed']} of {report['photos']} photos changed",
    ]
    if accuracy := report["accuracy"]:
        lines.append(
            f"accuracy {accuracy['old']:.3f} -> {accuracy['new']:.3f}: {accuracy['mended']} mended, "
            f"{accuracy['broken']} broken"
        )
    lines.append(
        f"largest difference of a score {report['largest_score_difference']:.3g}, "
        f"of a probability {report['largest_probability_difference']:.3g}"
    )
    different = [each for each in report["details"][:SHOWN] if _moved(each) > 0]
    if different:
        width = max(len(each["photo"]) for each in different)
        lines += ["", f"{'largest differences':<{width}}  probability of"]
        for each in different:
            most = each["largest_difference"]
            line = f"{each['photo']:<{width}}  {most['label']} {most['old']:.3f} -> {most['new']:.3f}"
            if each["old"]["label"] != each["new"]["label"]:
                line += f"   {each['old']['label']} -> {each['new']['label']}"
            lines.append(line)
    return "\n".join(lines)


def _moved(each: dict[str, Any]) -> float:
    return abs(float(each["largest_difference"]["new"]) - float(each["largest_difference"]["old"]))


def _captioned(each: dict[str, Any], folder: Path) -> Captioned:
    """Captions: old, new and, where known, true class; green is right, red wrong."""
    from clothing_model.evaluation.plots import GREEN, GREY, RED, Captioned

    lines = [(_short(Path(each["photo"]).name), GREY)]
    for which in ("old", "new"):
        found = each[which]
        colour = GREY if each["truth"] is None else GREEN if found["label"] == each["truth"] else RED
        lines.append((f"{which}: {found['label']} {found['probability']:.2f}", colour))
    if each["truth"] is not None:
        lines.append((f"is: {each['truth']}", GREY))
    return Captioned(folder / each["photo"], tuple(lines))


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"
