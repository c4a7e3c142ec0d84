"""JPEG to the pixels that Pillow's NEAREST takes, with Pillow's own libjpeg.

Importing it raises ImportError where this Pillow's libjpeg can't be used: then Pillow decodes, with the same pixels.
"""

from PIL import _imaging

from clothing_jpeg import _core
from clothing_jpeg._core import BrokenJpeg, decode, read_header

__version__ = "0.1.0"
__all__ = ["LIBJPEG", "BrokenJpeg", "decode", "read_header"]

_core.bind(_imaging.__file__)

# Which library decodes, for people. PIL.features says the same, for 3 ms more at every start.
LIBJPEG = f"libjpeg-turbo {getattr(_imaging, 'libjpeg_turbo_version', None) or 'of unknown version'}"
