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

# Pillow's weights for one direction: the ``kept`` results from ``first`` on, of a part of ``there`` pixels from
# ``start`` of ``photo``, which box, bilinear, hamming, bicubic or lanczos resizes to ``resized``. Two arrays of int32:
# each result's first pixel, and for each result as many weights as the longest takes, in units of 1/2^22.
def weights(
    name: str, photo: int, start: int, there: int, resized: int, first: int, kept: int, /
) -> tuple[bytes, bytes]: ...

# Fills ``out``, uint8 of rows x columns x 3 with any strides, with weighted sums: of the photo's rows and columns as
# ``weights`` gives them, and where ``down_first``, of columns of pixels before rows. Between the two, sums are rounded
# to uint8. The limits are those of decode().
def resample(
    data: Buffer,
    out: Buffer,
    rows: tuple[Buffer, Buffer],
    columns: tuple[Buffer, Buffer],
    down_first: bool,
    max_scans: int = 0,
    seconds: float | None = None,
    /,
) -> None: ...
