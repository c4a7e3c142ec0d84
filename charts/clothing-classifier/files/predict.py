"""Send a photo to the gateway as a form's file, as a raw body and by URL, and check the responses.

Usage: predict.py GATEWAY_URL PHOTO WANTED      (PHOTO in base64)

WANTED is JSON: "labels", each of which gets a score; "label", which gets the highest, and "photoUrl", unless they are
empty; "maxSeconds", the maximum response time; and "canary", unless it is null, with its "percent" of the requests, its
"version", and the "stable" version.

The environment variable GATEWAY_KEY is the API key, where the gateway has authentication on.
"""

# ruff: noqa: INP001, S310, T201 - a program of one file, given its address, that prints

import json
import math
import os
import sys
from base64 import b64decode
from itertools import count
from time import monotonic, sleep
from urllib.error import HTTPError
from urllib.request import Request, urlopen

gateway, photo, wanted = sys.argv[1], b64decode(sys.argv[2]), json.loads(sys.argv[3])
key = os.environ.get("GATEWAY_KEY", "").strip()
authorization = {"Authorization": f"Bearer {key}"} if key else {}


def predict(what: str, body: bytes, content_type: str, **headers: str) -> tuple[dict[str, float], str]:
    """The scores, and the version of the model that gave them; ends the program where they are not what is wanted."""
    start = monotonic()
    try:
        request = Request(f"{gateway}/predict", body, {"Content-Type": content_type, **authorization, **headers})
        with urlopen(request, timeout=wanted["maxSeconds"] + 5) as response:
            scores, version = json.load(response), response.headers["X-Model-Version"]
    except HTTPError as error:
        sys.exit(f"FAILED: {what}: the gateway answered {error.code}: {error.read().decode(errors='replace')}")
    except (OSError, ValueError) as error:
        sys.exit(f"FAILED: {what}: {gateway} gave no answer: {error}")
    seconds = monotonic() - start
    if set(scores) != set(wanted["labels"]) or not all(
        type(score) is float and math.isfinite(score) for score in scores.values()
    ):
        sys.exit(f"FAILED: {what}: expected a score for each of {wanted['labels']}, got {scores}")
    if seconds > wanted["maxSeconds"]:
        sys.exit(f"FAILED: {what}: the answer took {seconds:.2f} s, and test.maxSeconds is {wanted['maxSeconds']}")
    print(f"{what}: {max(scores, key=scores.__getitem__)} by version {version} in {seconds:.2f} s")
    return scores, version


# A Service may take a moment to know of a new pod, and a network policy of this one.
for _ in range(5):
    try:
        urlopen(f"{gateway}/ping", timeout=5).close()
        break
    except HTTPError:
        break  # it answers
    except OSError:
        sleep(1)

form = (
    b'--photo\r\nContent-Disposition: form-data; name="image"; filename="photo.png"\r\nContent-Type: image/png\r\n\r\n'
)
form += photo + b"\r\n--photo--\r\n"
predict("the photo in a form", form, "multipart/form-data; boundary=photo")
scores, _ = predict("the photo as the body", photo, "image/png")
if wanted["photoUrl"]:
    address = json.dumps({"url": wanted["photoUrl"]}).encode()
    scores, _ = predict(wanted["photoUrl"], address, "application/json")
best = max(scores, key=scores.__getitem__)
if wanted["label"] and best != wanted["label"]:
    sys.exit(f"FAILED: the photo is {best}, and test.label says {wanted['label']}: {scores}")

if canary := wanted["canary"]:
    from clothing_gateway.model.versions import is_chosen  # the gateway's own rule, as the test runs in its image

    for expected, chosen in ((canary["version"], True), (canary["stable"], False)):
        request_id = next(
            name for name in map("helm-test-{}".format, count()) if is_chosen(name, canary["percent"]) is chosen
        )
        _, version = predict(f"request {request_id}", photo, "image/png", **{"X-Request-Id": request_id})
        if version != expected:
            sys.exit(f"FAILED: request {request_id} is for version {expected}, and {version} answered: is it loaded?")
print("PASSED")
