"""The process stays within its computed maximum memory."""

from __future__ import annotations

import collections
import io
import threading

import pytest
from fakes import FakeModel, ModelServer, image_bytes, multipart
from PIL import Image
from tensorflow.core.framework import types_pb2

from clothing_gateway.limits import cgroup, memory
from clothing_gateway.settings import Settings

MIB = 1 << 20
# 50 megapixels, and the most that GATEWAY_MAX_PIXELS lets in.
WIDE = (8192, 6144)


def gradient(kind, size=WIDE, **save):
    """A large picture in a small file."""
    out = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(out, kind, **save)
    return out.getvalue()


def peak(pid):
    with open(f"/proc/{pid}/status") as file:  # noqa: PTH123
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024


def test_64_uploads_of_50_megapixels_at_once(start_gateway, stack):
    """As bodies and as forms, with files that fill the buffers and files that only fill the decoders."""
    server = ModelServer(FakeModel(inputs={"input_8": (types_pb2.DT_FLOAT, (-1, 299, 299, 3))}))
    stack.callback(server.stop)
    large, small = image_bytes(WIDE, quality=35), gradient("JPEG")
    # 27 megapixels of WebP are what the decoders' memory has room for.
    photos = (large, gradient("PNG", compress_level=1), small, gradient("WEBP", (5400, 5000), method=0))
    # Long enough for the decoders to be full all the time, and short enough for a test.
    gateway = start_gateway(server.address, request_timeout_seconds=8)
    answers = collections.Counter()

    def ask(number):
        data, kind = photos[number % len(photos)], "application/octet-stream"
        if number % 8 >= 4:
            data, kind = multipart(("image", "a", data))
        status, body, _ = gateway.post("/predict", data, kind)
        answers[status, body.get("code")] += 1

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(64)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    most = memory.most_bytes(Settings())
    print(f"{peak(gateway.pid) // MIB} of {most // MIB} MiB, {dict(answers)}")
    assert most / 3 < peak(gateway.pid) < most
    assert answers.total() == 64
    assert set(answers) <= {(200, None), (503, "overloaded"), (504, "out-of-time"), (408, "request-too-slow")}
    assert answers[503, "overloaded"]
    assert gateway.post("/predict", image_bytes())[0] == 200


def test_the_maximum_is_the_figure_in_the_readme():
    settings = Settings(decode_memory_bytes=512 * MIB)
    assert memory.most_bytes(settings) // MIB == 1042
    twice = Settings(decode_memory_bytes=512 * MIB, max_buffered_bytes=256 * MIB)
    assert memory.most_bytes(twice) - memory.most_bytes(settings) == 2 * 128 * MIB


@pytest.mark.parametrize(
    ("limit", "decoders"), [(None, 512), (8192, 512), (1280, 512), (1024, 493), (700, 169), (600, 128), (256, 128)]
)
def test_decoders_get_the_rest_of_the_containers_memory(limit, decoders, monkeypatch):
    monkeypatch.setattr(cgroup, "memory_limit", lambda: limit and limit * MIB)
    settings, _, _ = Settings.load({})
    assert settings.decode_memory_bytes // MIB == decoders
    assert Settings().decode_memory_bytes == settings.decode_memory_bytes
    warning = memory.too_small(settings)
    assert (warning is None) == (limit is None or limit >= 700)
    if warning is not None:
        assert f"has {limit} MiB" in warning
        assert "take 659 MiB" in warning
    assert Settings.load({"GATEWAY_DECODE_MEMORY_BYTES": str(64 * MIB)})[0].decode_memory_bytes == 64 * MIB


@pytest.mark.parametrize(("text", "limit"), [("1073741824\n", 1 << 30), ("max\n", None), ("", None), (None, None)])
def test_the_memory_limit_is_read_from_the_cgroup(tmp_path, text, limit):
    file = tmp_path / "memory.max"
    if text is not None:
        file.write_text(text)
    assert cgroup.memory_limit(file) == limit


def test_a_container_with_too_little_memory_is_reported(monkeypatch):
    monkeypatch.setattr(cgroup, "memory_limit", lambda: None)
    assert memory.too_small(Settings()) is None
    assert memory.too_small(Settings(), 1 << 30) is not None
