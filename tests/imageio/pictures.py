"""Files of every odd kind, made by hand: what the tests of lora_prep.imageio read."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image
from PIL.Image import Transpose


def scene(height: int = 24, width: int = 40) -> np.ndarray:
    """A smooth picture without any symmetry: its corners are red, yellow, blue and grey."""
    corners = np.array([[[220, 30, 40], [230, 220, 40]], [[30, 60, 200], [130, 130, 130]]])
    return cv2.resize(corners.astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)


def encode(pixels: np.ndarray | Image.Image, format: str, **options: object) -> bytes:
    image = pixels.copy() if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def exif(orientation: int | None = None, *, gps: bool = False) -> bytes:
    tags = Image.Exif()
    tags[0x010F] = "Camera maker"
    if orientation is not None:
        tags[0x0112] = orientation
    if gps:
        tags.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 29.0), 29: "1999:12:31"})
    return tags.tobytes()


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta><r tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


_SIDEWAYS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels that a camera held that way would store."""
    if orientation == 1:
        return upright
    return np.asarray(Image.fromarray(upright).transpose(_SIDEWAYS[orientation]))


# PNG, chunk by chunk


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    ihdr = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr)


def png_16_bit(values: np.ndarray) -> bytes:
    """H×W or H×W×C uint16, C = 2 (grey + alpha), 3 or 4."""
    channels = values.shape[2] if values.ndim == 3 else 1
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = png_header(values.shape[1], values.shape[0], 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels])
    return header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_chunks(data: bytes) -> list[bytes]:
    names, at = [], 8
    while at < len(data):
        names.append(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return names


def tiff_12_bit(values: np.ndarray) -> bytes:
    """H×W, values below 4096, W even: two pixels in three bytes."""
    first, second = values[:, ::2].astype(int), values[:, 1::2].astype(int)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1)
    height, width = values.shape
    return tiff(width, height, 12, packed.astype(np.uint8).tobytes())


def tiff(width: int, height: int, bits: int, data: bytes) -> bytes:
    """One uncompressed strip of grey."""
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1)]
    tags += [(278, height), (279, len(data))]
    ifd = struct.pack("<H", len(tags))
    ifd += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + ifd + bytes(4)


# GIF, frame by frame


def gif(frames: int) -> bytes:
    """2×1 pixels, black and white, and as many frames as asked."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 2, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHHB", 0, 0, 2, 1, 0) + b"\x02\x02\x44\x0a\x00"
    return screen + frame * frames + b";"


# JPEG, segment by segment


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """The segments right behind the start of the file and its JFIF segment."""
    assert jpeg[2:4] == b"\xff\xe0", "this JPEG has no JFIF segment"
    at = 4 + int.from_bytes(jpeg[4:6], "big")
    return jpeg[:at] + b"".join(segments) + jpeg[at:]


def markers(jpeg: bytes) -> list[int]:
    """The markers up to the first scan."""
    found, at = [], 2
    while not found or found[-1] != 0xDA:
        assert jpeg[at] == 0xFF
        found.append(jpeg[at + 1])
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return found


# ICC profiles (ICC.1:2022), as small as they can be


def _tag(kind: bytes, payload: bytes) -> bytes:
    data = kind + bytes(4) + payload
    return data + bytes(-len(data) % 4)


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def _text(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    return _tag(b"mluc", struct.pack(">IIHHII", 1, 12, 0x656E, 0x5553, len(encoded), 28) + encoded)


def _profile(device: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {
        b"desc": _text("made by hand"),
        b"cprt": _text("none"),
        b"wtpt": _tag(b"XYZ ", _fixed(0.9642, 1.0, 0.8249)),
        **tags,
    }
    table, body, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    date = struct.pack(">6H", 2020, 1, 1, 0, 0, 0)
    header = bytes(8) + struct.pack(">I", 0x04300000) + device + space + pcs + date + b"acsp"
    header = header.ljust(68, b"\0") + _fixed(0.9642, 1.0, 0.8249)
    header = header.ljust(128, b"\0")
    return struct.pack(">I", at + len(body)) + header[4:] + table + body


_SRGB_CURVE = _tag(
    b"para", struct.pack(">HH", 3, 0) + _fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
)
_SRGB_COLUMNS = ((0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))


_LINEAR = _tag(b"curv", struct.pack(">I", 0))


def rgb_profile(order: str = "rgb", *, linear: bool = False) -> bytes:
    """sRGB, or amounts of light, whose channels mean the primaries in this order.

    For "bgr", red and blue are swapped.
    """
    columns = dict(zip("rgb", _SRGB_COLUMNS, strict=True))
    tags = {}
    for channel, primary in zip("rgb", order, strict=True):
        tags[f"{channel}XYZ".encode()] = _tag(b"XYZ ", _fixed(*columns[primary]))
        tags[f"{channel}TRC".encode()] = _LINEAR if linear else _SRGB_CURVE
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def linear_grey_profile() -> bytes:
    """Grey values that are amounts of light."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _LINEAR})


def key_only_profile() -> bytes:
    """A CMYK printer whose cyan, magenta and yellow are out: only K darkens the paper."""
    identity = _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    ramp = bytes(range(256))
    paper, ink = bytes([255, 128, 128]), bytes([0, 128, 128])
    table = b"".join(ink if corner & 1 else paper for corner in range(16))  # K varies fastest
    lut = bytes([4, 3, 2, 0]) + identity + ramp * 4 + table + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": _tag(b"mft1", lut)})
