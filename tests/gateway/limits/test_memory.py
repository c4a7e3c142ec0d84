"""The process stays within its computed maximum memory."""

from __future__ import annotations

import collections
import contextlib
import io
import json
import socket
import threading
import time
from pathlib import Path

import pytest
from fakes import FakeModel, ModelServer, children, image_bytes, multipart
from pictures import arithmetic, bmp, chunk, empty_scans, exif_bomb, gif, lossless, png, zeros
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


class Peak(threading.Thread):
    """The most memory of a gateway and its decode processes together, sampled during the block.

    Pages that processes share by a fork are counted for each.
    """

    def __init__(self, pid):
        super().__init__()
        self.pid, self.bytes, self.done = pid, 0, threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()

    def run(self):
        while not self.done.wait(0.02):
            decoding = [pid for server in children(self.pid) for pid in (server, *children(server))]
            self.bytes = max(
                self.bytes, memory_of(self.pid, "VmRSS") + sum(memory_of(pid, "RssAnon") for pid in decoding)
            )


def memory_of(pid, name):
    with contextlib.suppress(OSError, StopIteration):  # it has ended
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024
    return 0


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
    with Peak(gateway.pid) as peak:
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    most = memory.most_bytes(Settings())
    print(f"{peak.bytes // MIB} of {most // MIB} MiB, {dict(answers)}")
    assert most / 3 < peak.bytes < most
    assert answers.total() == 64
    assert set(answers) <= {(200, None), (503, "overloaded"), (504, "out-of-time"), (408, "request-too-slow")}
    assert answers[503, "overloaded"]
    assert gateway.post("/predict", image_bytes())[0] == 200


MANY = 20 * MIB - 4096
HOSTILE = {
    "a column of pixels": lambda: png((1, 50 * MIB), 8, 0),
    "segments": lambda: with_segments(image_bytes(mode="CMYK"), b"\xff\xe5\0\2" * (MANY // 4)),
    "segments of a plain JPEG": lambda: with_segments(image_bytes(), b"\xff\xe5\0\4ab" * (MANY // 6)),
    "fill bytes": lambda: with_segments(image_bytes(mode="CMYK"), b"\xff" * MANY),
    "scans": lambda: empty_scans(WIDE, 60_000, 3),
    "scans with arithmetic coding": lambda: arithmetic(WIDE, 100, 4, b"\x55\x12" * 60),
    "comments": lambda: gif((8, 8), before=b"\x21\xfe" + b"\1a" * (MANY // 2) + b"\0"),
    "bytes between blocks": lambda: gif((8, 8), before=bytes(MANY)),
    "chunks": lambda: png((8, 8), before=chunk(b"teSt", b"") * (MANY // 12)),
    "chunks of pixels": lambda: png((8, 8), pixels=chunk(b"IDAT", b"") * (MANY // 12)),
    "profiles": lambda: png((8, 8), before=chunk(b"iCCP", b"a\0\0" + zeros(MIB)) * 990),
    "texts": lambda: png((8, 8), before=chunk(b"zTXt", b"a\0\0" + zeros(200 * MIB)) * 90),
    "run-length coding": lambda: bmp((50 * MIB, 1), 8, 1, b"\1\5\0\0\0\1"),
    "run-length coding of a small picture": lambda: bmp((8192, 6144), 4, 2, b"\xff\x12" * 200_000),
    "prefix codes": lambda: lossless((1024, 1024), 65_536),
    "prefix codes within the limit": lambda: lossless((1024, 1024), 3000),
    "sixteen bits": lambda: png(WIDE, 16, 6, interlaced=True),
    "exif": exif_bomb,
}


def with_segments(photo, segments):
    return photo[:2] + segments + photo[2:]


def test_hostile_files_take_no_more_memory(start_gateway, stack):
    """Each is sent twice concurrently, beside a client with photos."""
    server = ModelServer(FakeModel(inputs={"input_8": (types_pb2.DT_FLOAT, (-1, 299, 299, 3))}))
    stack.callback(server.stop)
    gateway = start_gateway(server.address)
    done, honest = threading.Event(), collections.Counter()

    def classify():
        while not done.wait(0.1):
            honest[gateway.post("/predict", image_bytes())[0]] += 1

    client = threading.Thread(target=classify)
    client.start()
    answers = {}

    def ask(name, data):
        status, body, _ = gateway.post("/predict", data, "application/octet-stream")
        answers.setdefault(name, set()).add((status, body.get("code")))

    with Peak(gateway.pid) as peak:
        for name, make in HOSTILE.items():
            data = make()
            assert len(data) <= 20 * MIB, name
            threads = [threading.Thread(target=ask, args=(name, data)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    done.set()
    client.join()
    most = memory.most_bytes(Settings())
    print(f"{peak.bytes // MIB} of {most // MIB} MiB, {dict(honest)}, {answers}")
    assert peak.bytes < most
    assert set(honest) == {200}
    decoded = {"profiles", "texts", "exif", "prefix codes within the limit", "sixteen bits"}
    refused = {(413, "too-complex"), (413, "too-many-pixels"), (415, "unsupported-image")}
    for name, got in answers.items():
        assert got <= ({(200, None)} if name in decoded else refused), name
    assert gateway.post("/predict", image_bytes())[0] == 200


def test_photos_in_tiny_packets_take_no_more_memory(start_gateway, photo_server):
    """A read allocates 64 kB before bytes arrive: kept with the two that do, a page stays in use."""
    packets, connections = 1000, 16

    def pinch(handler):
        handler.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 * packets))
        for _ in range(packets):
            handler.wfile.write(b"xx")
            time.sleep(0.0002)

    photo_server.paths["/pinch"] = pinch
    server = ModelServer()
    gateway = start_gateway(server.address, fetch_allowed_networks="127.0.0.0/8", fetch_allowed_ports=photo_server.port)
    before, answers = memory_of(gateway.pid, "VmHWM"), collections.Counter()
    body = json.dumps({"url": f"{photo_server.url}/pinch"})

    def ask():
        answers[gateway.post("/predict", body, "application/json")[0]] += 1

    clients = [threading.Thread(target=ask) for _ in range(connections)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    server.stop()
    taken = memory_of(gateway.pid, "VmHWM") - before
    print(f"{taken // 1024} kB for {packets * connections} packets")
    assert answers == {415: connections}
    assert taken < packets * connections * 512


def test_the_maximum_is_the_figure_in_the_readme():
    settings = Settings(decode_memory_bytes=512 * MIB, decode_processes=5)
    assert memory.most_bytes(settings) // MIB == 1119
    alone = Settings(decode_memory_bytes=512 * MIB, decode_processes=0)
    assert memory.most_bytes(settings) - memory.most_bytes(alone) == 60 * MIB
    twice = Settings(decode_memory_bytes=512 * MIB, decode_processes=5, max_buffered_bytes=256 * MIB)
    assert memory.most_bytes(twice) - memory.most_bytes(settings) == 2 * 128 * MIB


def test_tensors_are_counted_by_the_models_size():
    settings = Settings(decode_memory_bytes=512 * MIB, image_size=(598, 299))
    assert memory.most_bytes(settings) - memory.most_bytes(Settings(decode_memory_bytes=512 * MIB)) == (
        4 * 36 * 299 * 299 * 3 * 4
    )


def test_decoders_get_what_a_larger_models_tensors_leave(monkeypatch):
    monkeypatch.setattr(cgroup, "memory_limit", lambda: 1 << 30)
    settings, _, _ = Settings.load({"GATEWAY_IMAGE_SIZE": "512", "GATEWAY_DECODE_PROCESSES": "2"})
    assert settings.decode_memory_bytes // MIB == 156


@pytest.mark.parametrize(
    ("limit", "decoders"), [(None, 512), (8192, 512), (1280, 512), (1024, 416), (760, 152), (660, 128), (256, 128)]
)
def test_decoders_get_the_rest_of_the_containers_memory(limit, decoders, monkeypatch):
    monkeypatch.setattr(cgroup, "memory_limit", lambda: limit and limit * MIB)
    monkeypatch.setattr(cgroup, "available_cores", lambda: 4)
    settings, _, _ = Settings.load({})
    assert settings.decode_memory_bytes // MIB == decoders
    assert Settings().decode_memory_bytes == settings.decode_memory_bytes
    warning = memory.too_small(settings)
    assert (warning is None) == (limit is None or limit >= 760)
    if warning is not None:
        assert f"has {limit} MiB" in warning
        assert "take 736 MiB" in warning
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
