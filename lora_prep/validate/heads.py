"""The header of a plain JPEG file, read here: a fifth of the time that opening it takes.

Plain is what can be understood in a few lines: 8 bits, one channel or three, and neither EXIF nor
XMP nor an ICC profile, as `lora-prep normalize` leaves it. Everything else is left to Pillow.
"""

from lora_prep.imageio import Header

_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_START_OF_SCAN, _APP1, _APP2 = 0xDA, 0xE1, 0xE2
_MODES = {1: "L", 3: "RGB"}


def plain_jpeg(data: bytes) -> Header | None:
    """The header of a plain JPEG file; None for any other one (ITU-T T.81, B.1.1 and B.2.2)."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    at, header = 2, None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _START_OF_SCAN:
            return header
        if not (0xC0 <= marker < 0xFF) or marker in (_APP1, _APP2) or 0xD0 <= marker <= 0xD9:
            return None
        if marker in _FRAMES:
            header = _frame(data[at + 4 : at + 2 + length])
        at += 2 + length
    return None


def _frame(segment: bytes) -> Header | None:
    if len(segment) < 6 or segment[0] != 8 or segment[5] not in _MODES:
        return None
    height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    if not width or not height:
        return None
    mode = _MODES[segment[5]]
    return Header("JPEG", width, height, width, height, mode, 8, 1, False, False, False)
