"""Tuning of glibc's malloc: freed memory is returned, every photo's part is kept."""

from __future__ import annotations

import ctypes
import threading
import time

# glibc, malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

_HEAPS = 2
# Bytes that concurrent photos take from each heap, apart from decoding: a tensor of 1 MB, three times.
_WARM_BYTES = 16 << 20
# A trim and the page faults of warm_heap after it take 10 to 20 ms of CPU: 0.06 % of a core.
_TRIM_SECONDS = 30.0


def bound_heap(kept_bytes: int = 32 << 20, heaps: int = _HEAPS) -> bool:
    """Make glibc return a photo's memory after decoding; False with another C library.

    By default glibc takes Pillow's blocks of 16 MB from the heap once it has seen one freed, and each thread's heap
    keeps its peak size: 16 photos of 24 megapixels, decoded one after another, left 1.4 GB. With a fixed
    threshold, blocks of 4 MB and more are mapped and unmapped; what is smaller (a photo's tensor has 1 MB) stays in two
    heaps, which don't shrink below 32 MB (``kept_bytes``), so that an ordinary photo costs no page faults.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(
        (
            mallopt(_M_MMAP_THRESHOLD, 4 << 20),
            mallopt(_M_TRIM_THRESHOLD, kept_bytes),
            mallopt(_M_ARENA_MAX, heaps),
        )
    )


def warm_heap() -> None:
    """Prefault each heap, so that the first requests have no page faults.

    There are 6000 of 2.5 us each.

    It has an effect only after ``bound_heap`` has told glibc to keep that memory.
    """
    threads = [threading.Thread(target=_touch) for _ in range(_HEAPS)]
    for thread in threads:  # each new thread is given the next heap, which is made where there are fewer
        thread.start()
    for thread in threads:
        thread.join()


def keep_heap_trimmed(every_seconds: float = _TRIM_SECONDS) -> None:
    """Trim the heaps periodically, in a background thread; for glibc (``bound_heap``).

    By default glibc returns only the end of a heap. One block that outlives a burst of clients pins all free memory
    before it, and each burst leaves more: 30 MB in half an hour (docs/benchmarks/soak.md).
    """
    trim = ctypes.CDLL(None).malloc_trim

    def run() -> None:
        while True:
            time.sleep(every_seconds)
            trim(0)  # other threads run meanwhile
            warm_heap()

    threading.Thread(target=run, name="heap", daemon=True).start()


def _touch() -> None:
    [bytearray(b"\1") * (1 << 20) for _ in range(_WARM_BYTES >> 20)]
