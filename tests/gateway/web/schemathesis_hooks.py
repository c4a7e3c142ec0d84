"""What schemathesis can't invent: photos, and the address of one. Read by it as SCHEMATHESIS_HOOKS says."""

from __future__ import annotations

import os
import re

import schemathesis
from fakes import image_bytes
from hypothesis import strategies

photos = strategies.sampled_from([image_bytes(kind=kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP")])
schemathesis.openapi.media_type("image/*", photos)
schemathesis.openapi.media_type("application/octet-stream", photos)
schemathesis.openapi.format("photo", photos)
schemathesis.openapi.format("photo-url", strategies.just(os.environ["PHOTO_URL"]))


@schemathesis.hook
def before_call(context, case, kwargs):
    """A time too short for an answer is a valid one; 504 is then as right as 200, which no check knows."""
    headers = case.headers
    if re.fullmatch(r"[0-9]{1,9}", str(headers.get("X-Request-Timeout-Ms", ""))) and int(
        headers["X-Request-Timeout-Ms"]
    ):
        headers["X-Request-Timeout-Ms"] = "20000"
    if re.fullmatch(r"(?=0*[1-9])[0-9]{1,8}[HMSmun]", str(headers.get("grpc-timeout", ""))):
        headers["grpc-timeout"] = "20S"
