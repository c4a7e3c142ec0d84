"""Sends a photo to the gateway, as a form's file and as a plain body, and sees that each class gets a score.

Usage: predict.py GATEWAY_URL PHOTO LABELS      (PHOTO in base64, LABELS a JSON list)

The environment's GATEWAY_KEY is the key, where the gateway asks for one.
"""

# ruff: noqa: INP001, S310, T201 - a program of one file, given its address, that prints

import json
import math
import os
import sys
from base64 import b64decode
from urllib.error import HTTPError
from urllib.request import Request, urlopen

gateway, photo, labels = sys.argv[1], b64decode(sys.argv[2]), json.loads(sys.argv[3])
head = (
    b'--photo\r\nContent-Disposition: form-data; name="image"; filename="photo.png"\r\nContent-Type: image/png\r\n\r\n'
)
key = os.environ.get("GATEWAY_KEY", "").strip()
authorization = {"Authorization": f"Bearer {key}"} if key else {}
form = head + photo + b"\r\n--photo--\r\n"

for body, content_type in ((form, "multipart/form-data; boundary=photo"), (photo, "image/png")):
    try:
        request = Request(f"{gateway}/predict", body, {"Content-Type": content_type, **authorization})
        with urlopen(request, timeout=60) as response:
            scores = json.load(response)
    except HTTPError as error:
        sys.exit(f"FAILED: {content_type}: the gateway answered {error.code}: {error.read().decode(errors='replace')}")
    except (OSError, ValueError) as error:
        sys.exit(f"FAILED: {content_type}: {gateway} gave no answer: {error}")
    if set(scores) != set(labels) or not all(
        type(score) is float and math.isfinite(score) for score in scores.values()
    ):
        sys.exit(f"FAILED: {content_type}: expected a score for each of {labels}, got {scores}")
    print(f"{content_type}: {scores}")
print("PASSED: every class has a score")
