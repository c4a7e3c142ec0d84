from collections.abc import Buffer

class BrokenJpeg(ValueError):
    """A file that Pillow would refuse, too; the text is libjpeg's."""

def bind(path: str, /) -> None: ...
def read_header(data: Buffer, /) -> tuple[int, int, int, int, bool] | None:
    """Width, height, components, bytes of memory, and whether Pillow reads the EXIF block; None where Pillow decodes."""

def decode(
    data: Buffer, out: Buffer | None, size: tuple[int, int], table: Buffer | None, reverse: bool, /
) -> None:
    """Fill ``out``, height x width x 3 numbers: uint8, or float32 by a table of 256 x 3. Without it only the verdict."""
