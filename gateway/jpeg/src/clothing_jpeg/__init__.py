"""JPEG to the pixels that Pillow's NEAREST takes, with Pillow's own libjpeg.

Importing it raises ImportError where this Pillow's libjpeg can't be used: then Pillow decodes, with the same pixels.
"""

from PIL import _imaging, features

from clothing_jpeg import _core
from clothing_jpeg._core import BrokenJpeg, decode, read_header

__version__ = "0.1.0"
__all__ = ["LIBJPEG", "BrokenJpeg", "decode", "read_header"]

_core.bind(_imaging.__file__)

# Which library decodes, for people.
LIBJPEG = f"libjpeg-turbo {features.version('libjpeg_turbo') or 'of unknown version'}"
