"""Screenshots of the page for the documents, of a real gateway with the demo model: `make pictures`.

The photos are of the CC0 clothing dataset, one of each of two classes; where it is missing, the drawn one of the chart.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image
from playwright.sync_api import expect, sync_playwright
from test_page import DESKTOP, PHONE

import processes
from browser import CHROMIUM

FOLDER = processes.ROOT / "docs/pictures"
CLASSES = ("shoes", "pants")
SIZES = {
    "page": {**DESKTOP, "viewport": {"width": 900, "height": 600}},
    "page-phone": {**PHONE, "device_scale_factor": 1.5},
}


def photos(folder: Path) -> list[Path]:
    """The first photo of each class, under a readable name."""
    found = []
    for label in CLASSES:
        for photo in sorted((processes.DATASET / "validation" / label).glob("*.jpg"))[:1]:
            found.append(folder / f"{label}.jpg")
            shutil.copyfile(photo, found[-1])
    return found or [processes.SAMPLE]


def main() -> None:
    """Take the screenshots."""
    if CHROMIUM is None:
        sys.exit("pictures: no Chromium on the PATH; install it (apt-get install chromium), or name it in CHROMIUM")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary)
        with (
            processes.model_server(folder / "model", processes.DEMO_MODEL) as model,
            processes.gateway(folder / "gateway", model.ports["grpc"]) as gateway,
        ):
            processes.wait_until_ready(gateway)
            for _ in range(10):  # the first calls of a model are slower than those that people meet
                gateway.post("/classify", body=processes.SAMPLE.read_bytes(), headers=processes.PNG)
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            for name, size in SIZES.items():
                page = browser.new_context(**size).new_page()
                page.goto(f"http://127.0.0.1:{gateway.ports['http']}/")
                given = photos(folder) if name == "page" else photos(folder)[:1]
                page.locator("#files").set_input_files(given)
                expect(page.locator("#status")).to_have_text(f"{len(given)} of {len(given)} done.", timeout=30_000)
                file = FOLDER / f"{name}.png"
                page.screenshot(path=file, full_page=True)
                # 256 colours are enough for bars and thumbnails, and a third of the bytes.
                Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
                print(f"{file.relative_to(processes.ROOT)}: {file.stat().st_size / 1000:.0f} kB")
            browser.close()


if __name__ == "__main__":
    main()
