from typing_extensions import Buffer

# A damaged file, which Pillow's decoder refuses too; the text is libjpeg's.
class BrokenJpeg(ValueError): ...

# A file with more scans than ``max_scans``.
class TooManyScans(ValueError): ...

def bind(path: str, /) -> None: ...

# Width, height, components, bytes of memory, and whether the file has several scans; None where Pillow decodes.
def read_header(data: Buffer, /) -> tuple[int, int, int, int, bool] | None: ...

# Fills ``out``, height x width x 3: uint8, or float32 by a table of 256 x 3. Without ``out`` the file is only verified.
# ``max_scans`` of 0 is no limit. After ``seconds`` (None is no limit) decoding stops with TimeoutError.
def decode(
    data: Buffer,
    out: Buffer | None,
    size: tuple[int, int],
    table: Buffer | None,
    reverse: bool,
    max_scans: int = 0,
    seconds: float | None = None,
    /,
) -> None: ...
