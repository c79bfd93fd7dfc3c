"""Remove what is not the picture from a JPEG file, the compressed data untouched (ITU-T T.81)."""

import re

_EOI, _SOS, _COM = 0xD9, 0xDA, 0xFE
_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended sequential, progressive
_TABLES = {0xC4, 0xDB, 0xDD}  # Huffman tables, quantisation tables, restart interval

_next_marker = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]").search  # none of these in a scan's data


def strip(data: bytes) -> bytes | None:
    """The JPEG without metadata and without anything behind its end; its pixels are the same.

    Kept are tables, frame and scans bit for bit, and the two segments that say what the numbers
    mean: JFIF (without its thumbnail) and Adobe. None for the kinds of JPEG that not every decoder
    reads, and for files without an end.
    """
    kept = [b"\xff\xd8"]
    at = 2
    while at + 1 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _EOI:
            return b"".join(kept) + b"\xff\xd9"
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at:end]
        if end < at + 4 or end > len(data):
            return None
        if marker in _FRAMES | _TABLES:
            kept.append(segment)
        elif marker == _SOS:
            scan_end = _next_marker(data, end)
            if scan_end is None:
                return None
            end = scan_end.start()
            kept.append(data[at:end])
        elif marker == 0xE0 and segment[4:9] == b"JFIF\0" and len(segment) >= 18:
            kept.append(b"\xff\xe0\x00\x10" + segment[4:16] + b"\0\0")
        elif marker == 0xEE and segment[4:9] == b"Adobe" and len(segment) >= 16:
            kept.append(b"\xff\xee\x00\x0e" + segment[4:16])
        elif not (0xE0 <= marker <= 0xEF or marker == _COM):
            return None
        at = end
    return None
