"""Count of prefix-code groups in a lossless WebP stream.

They are counted before libwebp allocates a table for each.

A stream of 0.3 MB may declare 65,536 groups, for which libwebp takes 355 MiB beside the picture; with a colour cache
and longer codes four times as much. Their number is written behind the stream's transforms, so those are read here,
symbol by symbol, and nothing of the picture itself. Source: RFC 9649, section 3.
"""

from __future__ import annotations

from clothing_gateway.errors import BrokenImage, TooComplex

# libwebp's encoder makes 2,600 at most (MAX_HUFF_IMAGE_SIZE), other encoders one.
MAX_GROUPS = 3000
# libwebp's tables of one group (kTableSize with the largest colour cache, 5,004 entries of 4 bytes) and its HTreeGroup.
GROUP_BYTES = 20_700
# A group takes at least so many bits of a stream: 4 for each of its five codes, and its number, of 16.
GROUP_BITS = 36
# Symbols read here, at about 1 us each. libwebp's encoder writes at most 2 x 117,000 for transforms of 30 megapixels
# (method 6, blocks of 16 x 16).
MAX_SYMBOLS = 300_000

_LITERALS, _LENGTHS, _DISTANCES = 256, 24, 40
_CODE_LENGTH_ORDER = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
_PREDICTOR, _COLOUR, _SUBTRACT_GREEN, _INDEXING = range(4)


def require_few_groups(data: bytes, start: int, end: int, width: int, height: int) -> None:
    """Raise TooComplex for more than MAX_GROUPS groups.

    A stream that can't be read so far raises BrokenImage.

    The stream lies between ``start`` and ``end``, without VP8L's header of 5 bytes: at its transforms.
    """
    _Reader(data, start, end).read(width, height)


def _entries(lengths: list[int]) -> tuple[list[int], int]:
    """A canonical prefix code as a lookup table, and its number of bits.

    The table is by the next bits, of symbol << 4 | length.

    A code of one symbol takes no bits (section 3.7.2.1.1). Incomplete codes, which libwebp refuses, have entries of 0
    bits too, or are missing: then the stream is broken later, here or there.
    """
    used = [symbol for symbol, length in enumerate(lengths) if length]
    if len(used) <= 1:
        return [(used[0] if used else 0) << 4], 0
    most = max(lengths)
    table = [-1] * (1 << most)
    code = 0
    for length in range(1, most + 1):
        for symbol in used:
            if lengths[symbol] == length:
                if code >> length:
                    raise BrokenImage(cause="a prefix code with too many symbols")
                first = int(f"{code:0{length}b}"[::-1], 2)  # the first bit of a code is the lowest of the stream
                table[first :: 1 << length] = [symbol << 4 | length] * (1 << most - length)
                code += 1
        code <<= 1
    return table, most


class _Reader:
    def __init__(self, data: bytes, start: int, end: int) -> None:
        self._data = data[start:end] + bytes(8)
        self._end = 8 * (end - start)
        self._at = 0
        self._symbols = 0

    def read(self, width: int, height: int) -> None:
        """Everything up to the picture's own prefix codes, whose groups are counted."""
        seen = set[int]()
        while self._bits(1):
            kind = self._bits(2)
            if kind in seen:  # section 4; without this rule 20 MB of transforms would be read here for minutes
                raise BrokenImage(cause="a transform twice")
            seen.add(kind)
            if kind in (_PREDICTOR, _COLOUR):
                block = self._bits(3) + 2
                self._image(_blocks(width, block) * _blocks(height, block))
            elif kind == _INDEXING:
                colours = self._bits(8) + 1
                self._image(colours)
                width = _blocks(width, 3 if colours <= 2 else 2 if colours <= 4 else 1 if colours <= 16 else 0)
        if self._bits(1):
            self._bits(4)  # the colour cache
        if self._bits(1):
            block = self._bits(3) + 2
            groups = self._image(_blocks(width, block) * _blocks(height, block))
            # libwebp numbers the groups anew where there are more than 1,000; below it takes the largest number.
            if len(groups) > MAX_GROUPS:
                raise TooComplex("The lossless WebP has too many prefix codes; save it as JPEG.")

    def _bits(self, count: int) -> int:
        at = self._at
        self._at = at + count
        if self._at > self._end:
            raise BrokenImage(cause="a lossless stream is cut off")
        return int.from_bytes(self._data[at >> 3 : (at >> 3) + 4], "little") >> (at & 7) & (1 << count) - 1

    def _symbol(self, code: tuple[list[int], int]) -> int:
        table, bits = code
        if not bits:
            return table[0] >> 4
        at = self._at
        entry = table[int.from_bytes(self._data[at >> 3 : (at >> 3) + 4], "little") >> (at & 7) & (1 << bits) - 1]
        if entry < 0:
            raise BrokenImage(cause="bits that are no symbol")
        self._at = at + (entry & 15)
        if self._at > self._end:
            raise BrokenImage(cause="a lossless stream is cut off")
        return entry >> 4

    def _code(self, alphabet: int) -> tuple[list[int], int]:
        return _entries(self._simple_lengths(alphabet) if self._bits(1) else self._lengths(alphabet))

    def _simple_lengths(self, alphabet: int) -> list[int]:
        """One or two symbols, written out."""
        lengths = [0] * alphabet
        two = self._bits(1)
        symbols = [self._bits(8 if self._bits(1) else 1)]
        if two:
            symbols.append(self._bits(8))
        for symbol in symbols:
            if symbol >= alphabet:
                raise BrokenImage(cause="a symbol outside of its alphabet")
            lengths[symbol] = 1
        return lengths

    def _lengths(self, alphabet: int) -> list[int]:
        lengths = [0] * alphabet
        of_lengths = [0] * 19
        for index in range(self._bits(4) + 4):
            of_lengths[_CODE_LENGTH_ORDER[index]] = self._bits(3)
        code = _entries(of_lengths)
        left = alphabet
        if self._bits(1):
            left = 2 + self._bits(2 + 2 * self._bits(3))
        symbol, previous = 0, 8
        while symbol < alphabet and left:
            left -= 1
            length = self._symbol(code)
            if length < 16:
                lengths[symbol] = length
                symbol += 1
                previous = length or previous
                continue
            repeat = 3 + self._bits(2) if length == 16 else 3 + self._bits(3) if length == 17 else 11 + self._bits(7)
            if symbol + repeat > alphabet:
                raise BrokenImage(cause="more lengths than symbols")
            if length == 16:
                lengths[symbol : symbol + repeat] = [previous] * repeat
            symbol += repeat
        return lengths

    def _image(self, pixels: int) -> set[int]:
        """Read an entropy-coded image; return its distinct values of red << 8 | green.

        Copies and the colour cache repeat earlier values, and so needn't be made; both begin with 0.
        """
        cache = 1 << self._bits(4) if self._bits(1) else 0
        green = self._code(_LITERALS + _LENGTHS + cache)
        red, blue, alpha = (self._code(_LITERALS) for _ in range(3))
        distance = self._code(_DISTANCES)
        found = {0} if cache else set()
        symbol, read = self._symbol, 0
        while pixels > 0:
            read += 1
            if self._symbols + read > MAX_SYMBOLS:
                raise TooComplex("The lossless WebP has too many transforms; save it as JPEG.")
            value = symbol(green)
            if value < _LITERALS:
                found.add(symbol(red) << 8 | value)
                symbol(blue)
                symbol(alpha)
                pixels -= 1
            elif value < _LITERALS + _LENGTHS:
                pixels -= self._prefixed(value - _LITERALS)
                self._prefixed(symbol(distance))
            else:
                pixels -= 1
            if not (green[1] or red[1] or blue[1] or alpha[1]) and value < _LITERALS:
                break  # no bit for a pixel: all are the same
        self._symbols += read
        return found

    def _prefixed(self, code: int) -> int:
        """Read a length or distance (section 3.6.2.2).

        A code has its highest bits; the others follow as they are.
        """
        if code < 4:
            return code + 1
        extra = code - 2 >> 1
        return (2 + (code & 1) << extra) + self._bits(extra) + 1


def _blocks(size: int, bits: int) -> int:
    return size + (1 << bits) - 1 >> bits
