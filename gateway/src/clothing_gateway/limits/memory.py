"""Maximum memory of the processes, by the settings; measured by test_memory.py."""

from __future__ import annotations

from typing import Protocol

from clothing_gateway.limits import cgroup
from clothing_gateway.limits.admission import slots_in_all

MIB = 1 << 20
# 80 MiB when idle, and what the two heaps keep for the next photos, 32 MiB each (heap.bound_heap).
_PROCESS_BYTES = 144 * MIB
# The decode processes' fork server, and what each of them has of its own beside a photo (image/worker.py): measured 18
# and 7 MiB.
_FORK_SERVER_BYTES = 20 * MIB
_DECODE_PROCESS_BYTES = 8 * MIB
# A photo's file as it was received, and as it was read or parsed from its form.
_FILE_COPIES = 2
# A photo's tensor as prepared, in the message, serialised, and in gRPC's buffers.
_TENSOR_COPIES = 4
# Width and height where GATEWAY_IMAGE_SIZE names none: Xception's. The signature's own are known after the start only.
_IMAGE_SIZE = (299, 299)
_PIXEL_BYTES = 3 * 4
# Room for two photos of 12 megapixels in whatever format, or one of 50.
_DECODERS_BYTES = 512 * MIB
# A lower limit would refuse photos that phones take.
_LEAST_DECODERS_BYTES = 128 * MIB


class Bounds(Protocol):
    """The settings that bound memory; ``settings.Settings`` has them."""

    @property
    def max_buffered_bytes(self) -> int:
        """Bytes of all bodies and fetched photos together."""

    @property
    def max_in_flight(self) -> int:
        """Photos in flight of one client."""

    @property
    def decode_memory_bytes(self) -> int:
        """Bytes of all decoders together."""

    @property
    def decode_processes(self) -> int:
        """Decode processes, at most; 0 decodes in this one."""

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Width and height of the model's input, where the settings name them."""


def without_decoders(
    max_buffered_bytes: int, max_in_flight: int, decode_processes: int, image_size: tuple[int, int] | None = None
) -> int:
    """Bytes for the processes and their requests, without decoding."""
    width, height = image_size or _IMAGE_SIZE
    tensors = _TENSOR_COPIES * width * height * _PIXEL_BYTES * slots_in_all(max_in_flight)
    processes = _PROCESS_BYTES
    if decode_processes:
        processes += _FORK_SERVER_BYTES + decode_processes * _DECODE_PROCESS_BYTES
    return processes + _FILE_COPIES * max_buffered_bytes + tensors


def for_decoders(
    max_buffered_bytes: int,
    max_in_flight: int,
    decode_processes: int,
    limit: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> int:
    """Bytes left for decoding under a container's memory limit, clamped.

    The container is the current one by default.
    """
    if limit is None:
        limit = cgroup.memory_limit()
    if limit is None:
        return _DECODERS_BYTES
    left = limit - without_decoders(max_buffered_bytes, max_in_flight, decode_processes, image_size)
    return min(_DECODERS_BYTES, max(left, _LEAST_DECODERS_BYTES))


def most_bytes(settings: Bounds) -> int:
    """Maximum bytes that the process takes, whatever clients send."""
    requests = without_decoders(
        settings.max_buffered_bytes, settings.max_in_flight, settings.decode_processes, settings.image_size
    )
    return requests + settings.decode_memory_bytes


def too_small(settings: Bounds, limit: int | None = None) -> str | None:
    """A warning where the container's limit is below ``most_bytes``, else None.

    Requests could cause an OOM kill there.
    """
    if limit is None:
        limit = cgroup.memory_limit()
    if limit is None or limit >= (most := most_bytes(settings)):
        return None
    return (
        f"the container has {limit // MIB} MiB of memory, and requests can make it take {-(-most // MIB)} MiB: "
        "give it as much, or lower GATEWAY_MAX_BUFFERED_BYTES, GATEWAY_DECODE_MEMORY_BYTES or GATEWAY_MAX_IN_FLIGHT"
    )
