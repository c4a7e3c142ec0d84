"""What each file of Chart-values-examples renders to, kept in golden/: a change of the chart shows what it changes.

    python tests/chart/golden.py      # writes them anew; `make docs` does

They are those of version 0.0.0 of chart and images: a release changes none of them.
"""

import re
import sys
from pathlib import Path

import yaml
from charts import CLASSIFIER, EXAMPLES, KUBERNETES, of_version, render

GOLDEN = Path(__file__).parent / "golden"


def golden_renders() -> dict[str, str]:
    """Each example's render, by the name of its golden file."""
    with of_version(CLASSIFIER, "0.0.0", "0.0.0") as chart:
        return {
            file.name: readable(render(chart, "--values", file, "--kube-version", KUBERNETES[-2])) for file in EXAMPLES
        }


def readable(rendered: str) -> str:
    """Without lines of over 400 characters: files of the chart (a photo, a program), which have their own tests."""
    return re.sub("(?m)^( *).{400,}$", r"\1# a long line", rendered)


def main() -> int:
    """Write them, and remove those of examples that are gone."""
    GOLDEN.mkdir(exist_ok=True)
    renders = golden_renders()
    for name, text in renders.items():
        assert list(yaml.safe_load_all(text)), name
        (GOLDEN / name).write_text(text)
    for file in GOLDEN.glob("*.yaml"):
        if file.name not in renders:
            file.unlink()
    print(f"{len(renders)} renders in {GOLDEN.relative_to(Path.cwd())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
