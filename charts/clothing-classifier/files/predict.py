"""Sends a photo to the gateway, as the file of a form and as a plain body, and sees that each class gets a score.

Usage: predict.py GATEWAY_URL PHOTO LABELS      (LABELS is a JSON list)
"""

import json
import math
import sys
import time
import urllib.error
import urllib.request

PATIENCE_SECONDS = 60.0
REQUEST_SECONDS = 30.0


def multipart(photo: bytes) -> tuple[bytes, str]:
    boundary = "photo-boundary"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="photo.png"\r\nContent-Type: image/png\r\n\r\n'
    return head.encode() + photo + f"\r\n--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def post(url: str, body: bytes, content_type: str, until: float) -> bytes:
    """What the gateway answers; a gateway that can't be reached or is busy (503) is tried again."""
    while True:
        try:
            request = urllib.request.Request(url, data=body, headers={"Content-Type": content_type})
            with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            reason = f"{error.code}: {error.read().decode(errors='replace')[:500]}"
            if error.code != 503 or time.monotonic() > until:
                raise SystemExit(f"FAILED: {url} answered {reason}") from None
        except OSError as error:
            reason = str(error)
            if time.monotonic() > until:
                raise SystemExit(f"FAILED: {url} can't be reached: {reason}") from None
        print(f"trying again: {reason}", flush=True)
        time.sleep(2)


def check(answer: bytes, labels: list[str]) -> None:
    try:
        scores = json.loads(answer)
    except ValueError:
        raise SystemExit(f"FAILED: the answer isn't JSON: {answer[:500]!r}") from None
    if not isinstance(scores, dict) or set(scores) != set(labels):
        raise SystemExit(f"FAILED: expected a score for each of {sorted(labels)}, got {scores}")
    for label, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
            raise SystemExit(f"FAILED: the score of {label} is {score!r}")


def main(gateway: str, photo_file: str, labels_json: str) -> None:
    labels = json.loads(labels_json)
    until = time.monotonic() + PATIENCE_SECONDS
    with open(photo_file, "rb") as file:
        photo = file.read()
    for name, (body, content_type) in {"upload": multipart(photo), "body": (photo, "image/png")}.items():
        answer = post(f"{gateway}/predict", body, content_type, until)
        check(answer, labels)
        print(f"{name}: {answer.decode().strip()}", flush=True)
    print("PASSED: every class has a score")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
