from typing_extensions import Buffer

# A damaged file, which Pillow's decoder refuses too; the text is libjpeg's.
class BrokenJpeg(ValueError): ...

# A file with more scans than ``max_scans``.
class TooManyScans(ValueError): ...

def bind(path: str, /) -> None: ...

# Width, height, components, bytes of memory, whether the file has several scans, and where its EXIF lies: start and end
# of the first segment's body and the number of segments, or zeros. None where Pillow decodes.
def read_header(data: Buffer, /) -> tuple[int, int, int, int, bool, tuple[int, int, int]] | None: ...

# Fills ``out``, rows x columns x 3 with any strides: uint8, or float32 by a table of 256 x 3. Without ``out`` the file
# is only verified. ``rows`` (ascending) and ``columns`` are int32, of the photo's; its height and width are black ones.
# ``max_scans`` of 0 is no limit. After ``seconds`` (None is no limit) decoding stops with TimeoutError.
def decode(
    data: Buffer,
    out: Buffer | None,
    rows: Buffer | None,
    columns: Buffer | None,
    table: Buffer | None,
    max_scans: int = 0,
    seconds: float | None = None,
    /,
) -> None: ...
