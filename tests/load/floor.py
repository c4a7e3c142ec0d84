"""The floor: the steps that every gateway needs, in a bare loop, on one thread.

It takes one client's connection and keeps it: the request is read from the socket and split by its Content-Length, a
URL's photo comes over one connection that is kept alive, the photo is decoded, resized and normalised, the tensor is
put behind a frame made once, gRPC carries the bytes as they are, and the scores go back as JSON. No framework, no
limits, no log. It knows its benchmark: it is a yardstick and serves nobody.

    floor.py PORT [PROCESSES]

Several processes share the port, each with a client of its own: the same steps while all cores are busy.

The model server is in TF_SERVING_HOST. A line on stdout says what decodes JPEGs.
"""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
from PIL import Image, JpegImagePlugin  # noqa: F401 - the plugin is registered by its import

Tensor = memoryview  # of float32, where they lie: joined into the request, they are copied once
LABELS = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt")
SIZE = 299


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def frame() -> bytes:
    """A PredictRequest up to the tensor's first byte; the tensor ends the message."""
    content = SIZE * SIZE * 3 * 4
    shape = b"".join(field(2, b"\x08" + varint(size)) for size in (1, SIZE, SIZE, 3))
    head = b"\x08\x01" + field(2, shape) + b"\x22" + varint(content)  # DT_FLOAT, the shape, tensor_content
    tensor = b"\x12" + varint(len(head) + content)
    name = field(1, b"input_8")
    spec = field(1, field(1, b"clothing-model") + field(3, b"serving_default"))
    return spec + b"\x12" + varint(len(name) + len(tensor) + len(head) + content) + name + tensor + head


def read(sock: socket.socket) -> tuple[bytes, bytes]:
    """The head and the body of a message with a Content-Length."""
    data = sock.recv(1 << 16)
    if not data:
        return b"", b""
    end = data.find(b"\r\n\r\n")
    while end < 0:
        data += sock.recv(1 << 16)
        end = data.find(b"\r\n\r\n")
    head = data[:end]
    start = head.lower().index(b"content-length:") + 15
    length = int(head[start:].split(b"\r\n", 1)[0])
    have = len(data) - end - 4
    if have == length:
        return head, data[end + 4 :]
    body = bytearray(length)
    body[:have] = data[end + 4 :]
    view = memoryview(body)
    while have < length:
        have += sock.recv_into(view[have:])
    return head, bytes(body)


class PhotoHost:
    """The connection to the photo server."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None

    def get(self, url: str) -> bytes:
        parts = urlsplit(url)
        if self._sock is None:
            self._sock = socket.create_connection((parts.hostname, parts.port))
        self._sock.sendall(f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        return read(self._sock)[1]


def pillow(data: bytes) -> Tensor:
    """The photo as the model's input, by Pillow and numpy."""
    image: Image.Image = Image.open(io.BytesIO(data), formats=("JPEG",))
    if image.mode != "RGB":
        image = image.convert("RGB")
    numbers = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.NEAREST), np.float32)
    numbers /= 127.5
    numbers -= 1.0
    return numbers.data


def nearest(taken: int, there: int) -> np.ndarray:
    """Which of ``there`` pixels each of ``taken`` is, by Pillow's running sum."""
    step = float(np.float32(there)) / taken
    return np.minimum(np.add.accumulate([step * 0.5, *[step] * (taken - 1)]).astype(np.int32), np.int32(there))


def decoder() -> tuple[str, Callable[[bytes], Tensor]]:
    """The native decoder alone, where it is built; else Pillow."""
    try:
        import clothing_jpeg
    except ImportError:
        return "Pillow", pillow
    steps = np.arange(256, dtype=np.float32)
    steps /= 127.5
    steps -= 1.0
    table = np.ascontiguousarray(steps[:, None].repeat(3, 1))
    numbers = np.empty((SIZE, SIZE, 3), np.float32)

    def native(data: bytes) -> Tensor:
        header = clothing_jpeg.read_header(data)
        if header is None:  # not one of those that it decodes
            return pillow(data)
        columns, rows = (nearest(SIZE, side) for side in header[:2])
        clothing_jpeg.decode(data, numbers, rows, columns, table)
        return numbers.data

    return f"clothing_jpeg {clothing_jpeg.__version__}, {clothing_jpeg.LIBJPEG}", native


def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    processes = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    parent = True
    for _ in range(processes - 1):
        parent = parent and os.fork() != 0
    name, decode = decoder()
    head = frame()
    channel = grpc.insecure_channel(os.environ["TF_SERVING_HOST"])
    # With no functions to write and read messages, bytes go out and come in as they are.
    predict: Any = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    host = PhotoHost()
    if parent:
        print(name, flush=True)
    while True:
        client, _ = listener.accept()
        with client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                request, body = read(client)
                if not request:
                    break
                if b"application/json" in request:
                    body = host.get(json.loads(body)["url"])
                answer = predict(b"".join((head, decode(body))))
                packed = answer.index(b"\x2a\x28") + 2  # float_val, ten of four bytes
                scores = struct.unpack_from("<10f", answer, packed)
                text = json.dumps(dict(zip(LABELS, scores, strict=True))).encode()
                client.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(text)
                    + text
                )


if __name__ == "__main__":
    main()
