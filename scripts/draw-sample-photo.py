#!/usr/bin/env python3
"""Draws the photo that `helm test` sends: trousers on a light ground.

A drawing, so that no person's photo is published.

Usage: scripts/draw-sample-photo.py [FILE]      (charts/clothing-classifier/files/photo.png)
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw

TROUSERS = [(62, 20), (138, 20), (152, 180), (112, 180), (100, 75), (88, 180), (48, 180)]


def draw() -> Image.Image:
    """The photo, of 200 by 200 pixels."""
    photo = Image.new("RGB", (200, 200), (232, 228, 220))
    pencil = ImageDraw.Draw(photo)
    pencil.polygon(TROUSERS, fill=(52, 74, 120), outline=(30, 44, 78))
    pencil.rectangle((62, 20, 138, 30), fill=(40, 58, 98))
    pencil.line((100, 30, 100, 75), fill=(30, 44, 78), width=2)
    return photo


if __name__ == "__main__":
    default = Path(__file__).resolve().parent.parent / "charts/clothing-classifier/files/photo.png"
    draw().save(sys.argv[1] if len(sys.argv) > 1 else default, optimize=True)
