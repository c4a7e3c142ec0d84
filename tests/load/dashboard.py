"""The chart's dashboard as a picture: a Prometheus's answers to its queries.

    gateway/.venv/bin/python tests/load/dashboard.py docs/pictures/dashboard.png

A gateway with six places and a portable model server are watched for five minutes: few clients, too many, a model
server that says nothing, few clients again. Grafana is in none of the package registries: what is drawn is its layout,
with the same queries.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import programs  # noqa: E402

from monitored import Installation, installation, load, targets  # noqa: E402

SCRAPE_SECONDS = 5
PHASES = (("few clients", 110, 2), ("too many clients", 50, 16), ("few clients", 60, 2))
STOPPED_SECONDS = 25


def say(text: str) -> None:
    """Print progress."""
    print(f"==> {text}", flush=True)


def trouble(system: Installation) -> None:
    """Stop the model server's process for a while (SIGSTOP), then continue it."""
    system.model.process.send_signal(signal.SIGSTOP)
    try:
        load(system, STOPPED_SECONDS, 2)
    finally:
        system.model.process.send_signal(signal.SIGCONT)


def record(folder: Path) -> list[dict[str, object]]:
    """The lines of each panel over the whole time."""
    settings = {
        "GATEWAY_MAX_IN_FLIGHT": "6", "GATEWAY_MAX_PHOTOS": "6", "GATEWAY_REQUEST_TIMEOUT_SECONDS": "3",
    }  # fmt: skip
    with installation(folder, f"{SCRAPE_SECONDS}s", **settings) as system:
        start = time.time()
        for number, (what, seconds, clients) in enumerate(PHASES):
            if number == len(PHASES) - 1:
                say(f"a model server that says nothing, {STOPPED_SECONDS} s")
                trouble(system)
            say(f"{what}: {clients}, {seconds} s")
            load(system, seconds, clients)
        dashboard = system.monitoring.dashboard
        lines: dict[str, list[dict[str, object]]] = {panel["title"]: [] for panel in dashboard["panels"]}
        for target in targets(dashboard, f"{4 * SCRAPE_SECONDS}s"):
            found = system.prometheus.api(
                "query_range", query=target.expression, start=start, end=time.time(), step=SCRAPE_SECONDS
            )
            for series in found["result"]:
                name = target.legend
                for label, value in series["metric"].items():
                    name = name.replace(f"{{{{{label}}}}}", value)
                values = [(at - start, float(value)) for at, value in series["values"]]
                lines[target.panel].append({"name": name, "values": values})
        return [
            {
                "title": panel["title"],
                "place": panel["gridPos"],
                "unit": panel["fieldConfig"]["defaults"]["unit"],
                "lines": lines[panel["title"]],
            }
            for panel in dashboard["panels"]
        ]


def main() -> int:
    """Record the metrics and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("picture", type=Path, help="the PNG file to write")
    picture = parser.parse_args().picture
    python = programs.environment("plot", HERE / "plot/requirements.lock", say) / "bin/python"
    with tempfile.TemporaryDirectory() as folder:
        recorded = Path(folder) / "panels.json"
        recorded.write_text(json.dumps(record(Path(folder))))
        picture.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([python, HERE / "plot/dashboard.py", recorded, picture], check=True)
    say(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
