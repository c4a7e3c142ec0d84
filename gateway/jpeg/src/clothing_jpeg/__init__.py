"""JPEG decoding to chosen rows and columns, or resized, with Pillow's libjpeg.

Importing it raises ImportError where this Pillow's libjpeg can't be used: then Pillow decodes, to the same pixels.
"""

from PIL import _imaging

from clothing_jpeg import _core
from clothing_jpeg._core import BrokenJpeg, TooManyScans, decode, read_header, resample, weights

__version__ = "0.1.0"
# Of the functions' signatures: the gateway uses no other.
API = 3
__all__ = ["API", "LIBJPEG", "BrokenJpeg", "TooManyScans", "decode", "read_header", "resample", "weights"]

_core.bind(_imaging.__file__)

# The decoding library, for logs. PIL.features names it too, at 3 ms more per start.
LIBJPEG = f"libjpeg-turbo {getattr(_imaging, 'libjpeg_turbo_version', None) or 'of unknown version'}"
