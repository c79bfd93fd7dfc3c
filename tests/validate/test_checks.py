"""Each check finds what it is for, and nothing else does; a clean data set has no issue."""

import re
import shutil
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from lora_prep.dataset import Dataset
from lora_prep.validate import CHECKS, validate
from lora_prep.validate.masks import is_noisy
from tests.validate.made import SIZE, Data, ellipse, encode, photo


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def frames(kind: str) -> bytes:
    return encode(photo(), kind, save_all=True, append_images=[photo().rotate(180)], lossless=True)


def with_alpha(alpha: np.ndarray, colours: Image.Image | None = None) -> bytes:
    picture = (colours or photo()).convert("RGBA")
    picture.putalpha(Image.fromarray(alpha))
    return encode(picture)


def swapped_primaries() -> bytes:
    """An sRGB profile with red and green exchanged: valid, and not sRGB."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is huge."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def palette_mask(background: tuple[int, ...], face: tuple[int, ...]) -> bytes:
    picture = Image.fromarray((ellipse() > 0).astype(np.uint8), "P")
    picture.putpalette([*background, *face])
    return encode(picture)


def jpeg_noise(quality: int = 90) -> np.ndarray:
    """What JPEG makes of a mask."""
    _, data = cv2.imencode(".jpg", ellipse((256, 256)), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)


def outside(data: Data, path: Path) -> None:
    """Move a file out of the data set and put a link in its place."""
    elsewhere = data.root.parent / f"elsewhere{path.suffix}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def pair(data: Data, name: str, image: bytes | None = None) -> None:
    data.image(name, image)
    data.mask(f"{Path(name).stem}.png")


def flip_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def corner(height: int, width: int) -> np.ndarray:
    """A mask that is white in a corner."""
    mask = np.zeros_like(ellipse())
    mask[:height, :width] = 255
    return mask


def noisy_pair(data: Data) -> None:
    data.image("n.jpg", encode(photo((256, 256)), "JPEG"))
    data.mask("n.png", jpeg_noise())


Damage = Callable[[Data], object]

DAMAGE: dict[str, dict[str, Damage]] = {
    "P001": {
        "no mask": lambda d: (d.masks / "a.png").unlink(),
        "two images, no mask": lambda d: [d.image("x.jpg"), d.image("y.jpg")],
    },
    "P002": {
        "extra mask": lambda d: d.mask("x.png"),
        "extra masks": lambda d: [d.mask("x.png"), d.mask("y.png")],
    },
    "P003": {"one stem": lambda d: d.image("a.png", encode(photo()))},
    "P004": {"two masks": lambda d: d.mask("a.jpg", encode(Image.fromarray(ellipse()), "JPEG"))},
    "P005": {
        "case": lambda d: pair(d, "A.jpg"),
        "Unicode form": lambda d: pair(
            d, unicodedata.normalize("NFD", "été 北京.png"), encode(photo())
        ),
        "both": lambda d: pair(d, unicodedata.normalize("NFD", "Été 北京.png"), encode(photo())),
    },
    "P006": {
        "no folder": lambda d: shutil.rmtree(d.masks),
        "empty folder": lambda d: [path.unlink() for path in d.masks.iterdir()],
    },
    "P007": {
        "image": lambda d: rewrite(d.faces / "a.jpg", lambda _: b""),
        "mask": lambda d: rewrite(d.masks / "a.png", lambda _: b""),
    },
    "P008": {
        "note": lambda d: (d.masks / "notes.txt").write_text("x"),
        "caption": lambda d: (d.masks / "a.txt").write_text("x"),
        "no ending": lambda d: (d.masks / "Makefile").write_text("x"),
    },
    "P009": {
        "case": lambda d: (d.masks / "a.png").rename(d.masks / "A.png"),
        "Unicode form": lambda d: (d.masks / "été 北京.png").rename(
            d.masks / unicodedata.normalize("NFD", "été 北京.png")
        ),
    },
    "P010": {
        "image": lambda d: outside(d, d.faces / "a.jpg"),
        "mask": lambda d: outside(d, d.masks / "a.png"),
    },
    "P011": {
        "AppleDouble": lambda d: (d.faces / "._a.jpg").write_bytes(b"\0\5\x16\7"),
        "mask": lambda d: (d.masks / "._a.png").write_bytes(b"\0\5\x16\7"),
    },
    "P012": {
        "image": lambda d: (d.faces / "x.jpg").symlink_to("gone.jpg"),
        "mask": lambda d: (d.masks / "x.png").symlink_to("gone.png"),
    },
    "P013": {
        "sub-folder": lambda d: d.image("more/x.jpg"),
        "deep": lambda d: d.image("more/and/more/x.jpg"),
    },
    "I001": {
        "JPEG cut in its pixels": lambda d: rewrite(d.faces / "a.jpg", lambda c: c[:-40]),
        "JPEG cut in its header": lambda d: rewrite(d.faces / "a.jpg", lambda c: c[:100]),
        "JPEG of zeros": lambda d: rewrite(d.faces / "a.jpg", lambda c: c[:-40] + bytes(40)),
        "cut PNG": lambda d: rewrite(d.faces / "été 北京.png", lambda c: c[:-1]),
        "changed PNG": lambda d: rewrite(d.faces / "été 北京.png", flip_bit),
        "cut WebP": lambda d: rewrite(d.faces / "c.webp", lambda c: c[:-1]),
        "not an image": lambda d: rewrite(d.faces / "a.jpg", lambda _: b"<!doctype html>"),
    },
    "I002": {
        "JPEG": lambda d: d.image("a.jpg", encode(photo(), "JPEG", exif=exif(3))),
        "PNG": lambda d: d.image("été 北京.png", encode(photo(), exif=exif(2))),
        "square": lambda d: [
            d.image("x.jpg", encode(photo((64, 64)), "JPEG", exif=exif(6))),
            d.mask("x.png", ellipse((64, 64))),
        ],
    },
    "I003": {"WebP": lambda d: d.image("c.webp", frames("WEBP"))},
    "I004": {"CMYK": lambda d: d.image("a.jpg", encode(photo(mode="CMYK"), "JPEG"))},
    "I005": {"bomb": lambda d: d.image("été 北京.png", bomb(20_000, 10_000))},
    "I006": {
        "PNG called JPEG": lambda d: d.image("a.jpg", encode(photo())),
        "JPEG called WebP": lambda d: d.image("c.webp", encode(photo(), "JPEG")),
    },
    "I007": {
        "TIFF": lambda d: pair(d, "x.tif", encode(photo(), "TIFF")),
        "GIF": lambda d: pair(d, "x.gif", encode(photo(), "GIF")),
        "BMP": lambda d: pair(d, "x.bmp", encode(photo(), "BMP")),
        "AVIF": lambda d: pair(d, "x.avif", encode(photo(), "AVIF")),
        "HEIC": lambda d: pair(d, "x.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        "HEIC called JPEG": lambda d: d.image("a.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        "odd ending": lambda d: pair(d, "x.jfif"),
        "odd case": lambda d: pair(d, "x.Jpg"),
    },
    "I008": {
        "RGBA": lambda d: d.image("été 北京.png", with_alpha(ellipse())),
        "palette": lambda d: d.image("été 北京.png", encode(photo().quantize(16), transparency=3)),
    },
    "I009": {
        "profile": lambda d: d.image(
            "a.jpg", encode(photo(), "JPEG", icc_profile=swapped_primaries())
        )
    },
    "I010": {
        "16 bits": lambda d: d.image(
            "été 北京.png", encode(Image.fromarray(ellipse().astype(np.uint16) * 257))
        )
    },
    "M001": {
        "cut": lambda d: rewrite(d.masks / "a.png", lambda c: c[: len(c) // 2]),
        "changed": lambda d: rewrite(d.masks / "a.png", flip_bit),
        "not an image": lambda d: rewrite(d.masks / "a.png", lambda _: b"GIF8"),
        "bomb": lambda d: d.mask("a.png", bomb(20_000, 10_000)),
    },
    "M002": {
        "larger": lambda d: d.mask("a.png", ellipse((SIZE[0] + 1, SIZE[1]))),
        "turned": lambda d: d.mask("a.png", ellipse((SIZE[1], SIZE[0]))),
    },
    "M003": {
        "whole range": lambda d: d.mask("a.png", ellipse().astype(np.uint16) * 257),
        "8-bit values": lambda d: d.mask("a.png", ellipse().astype(np.uint16)),
        "labels": lambda d: d.mask("a.png", (ellipse() // 255).astype(np.uint16)),
    },
    "M004": {
        "0 and 1": lambda d: d.mask("a.png", ellipse() // 255),
        "few labels": lambda d: d.mask("a.png", ellipse() // 255 * 3),
    },
    "M005": {
        "all": lambda d: d.mask("a.png", ellipse() * 0),
        "all but 63 pixels": lambda d: d.mask("a.png", corner(7, 9)),
    },
    "M006": {"all": lambda d: d.mask("a.png", ellipse() | 255)},
    "M007": {"JPEG": noisy_pair},
    "M008": {
        "WebP": lambda d: [
            (d.masks / "a.png").unlink(),
            d.mask("a.webp", encode(Image.fromarray(ellipse()), "WEBP", lossless=True)),
        ],
        "upper case": lambda d: (d.masks / "a.png").rename(d.masks / "a.PNG"),
        "BMP called PNG": lambda d: d.mask("a.png", encode(Image.fromarray(ellipse()), "BMP")),
    },
    "M009": {
        "white": lambda d: d.mask("a.png", with_alpha(ellipse(), Image.new("RGB", SIZE, "white"))),
        "black": lambda d: d.mask("a.png", with_alpha(ellipse(), Image.new("L", SIZE))),
        "photo": lambda d: d.mask("a.png", with_alpha(ellipse(), photo(mode="L"))),
    },
    "M010": {
        "palette": lambda d: d.mask("a.png", palette_mask((255, 0, 0), (0, 0, 255))),
        "RGB": lambda d: d.mask("a.png", np.stack([ellipse(), ellipse() * 0, ellipse() * 0], -1)),
    },
    "M011": {"PNG": lambda d: d.mask("a.png", encode(Image.fromarray(ellipse()), exif=exif(3)))},
}

FINE: dict[str, Damage] = {
    "nothing": lambda _: None,
    "mask of 1 bit": lambda d: d.mask("a.png", encode(Image.fromarray(ellipse()).convert("1"))),
    "mask with a palette": lambda d: d.mask("a.png", palette_mask((0, 0, 0), (255, 255, 255))),
    "grey RGB mask": lambda d: d.mask("a.png", np.stack([ellipse()] * 3, -1)),
    "opaque RGBA mask": lambda d: d.mask(
        "a.png", with_alpha(ellipse() | 255, Image.fromarray(ellipse()))
    ),
    "mask twice, in grey and alpha": lambda d: d.mask(
        "a.png", with_alpha(ellipse(), Image.fromarray(ellipse()))
    ),
    "small mask": lambda d: d.mask("a.png", corner(16, 16)),
    "soft mask": lambda d: d.mask("a.png", cv2.GaussianBlur(ellipse(), (0, 0), 3)),
    "grey image": lambda d: d.image("a.jpg", encode(photo(mode="L"), "JPEG")),
    "palette image": lambda d: d.image("été 北京.png", encode(photo().quantize(16))),
    "opaque RGBA image": lambda d: d.image("été 北京.png", with_alpha(ellipse() | 255)),
    "16-bit colours": lambda d: (
        cv2.imwrite(str(d.image("x.png")), np.dstack([ellipse().astype(np.uint16) * 257] * 3))
        and d.mask("x.png")
    ),
    "progressive JPEG": lambda d: d.image("a.jpg", encode(photo(), "JPEG", progressive=True)),
    "more behind the JPEG": lambda d: rewrite(d.faces / "a.jpg", lambda c: c + b"SEFT" * 100),
    "more behind the PNG": lambda d: rewrite(d.faces / "été 北京.png", lambda c: c + b"x"),
    "sRGB profile": lambda d: d.image(
        "a.jpg",
        encode(
            photo(),
            "JPEG",
            icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        ),
    ),
    "EXIF orientation 1": lambda d: d.image("a.jpg", encode(photo(), "JPEG", exif=exif(1))),
    "ending in capitals": lambda d: pair(d, "x.JPG"),
    "two dots": lambda d: pair(d, "a.b.jpg"),
    "link within the data set": lambda d: [
        (d.root / "originals").mkdir(),
        (d.faces / "a.jpg").rename(d.root / "originals" / "a.jpg"),
        (d.faces / "a.jpg").symlink_to("../originals/a.jpg"),
    ],
    "sub-folder without images": lambda d: [
        (d.faces / "notes").mkdir(),
        (d.faces / "notes" / "x.txt").write_text("x"),
    ],
    "hidden folder": lambda d: d.image(".thumbs/x.jpg"),
    "other hidden files": lambda d: (d.masks / ".DS_Store").write_bytes(b"x"),
}


@pytest.mark.parametrize("deep", [False, True], ids=["default", "deep"])
@pytest.mark.parametrize(
    ("code", "damage"),
    [pytest.param(c, f, id=f"{c}-{n}") for c, cases in DAMAGE.items() for n, f in cases.items()],
)
def test_finds_this_and_nothing_else(data: Data, code: str, damage: Damage, deep: bool) -> None:
    damage(data)
    assert list(data.codes(deep=deep)) == [code]


@pytest.mark.parametrize("deep", [False, True], ids=["default", "deep"])
@pytest.mark.parametrize("change", FINE.values(), ids=FINE)
def test_fine(data: Data, change: Damage, deep: bool) -> None:
    change(data)
    assert data.codes(deep=deep) == {}


OTHERS = {
    *("I011", "I012", "M012", "M013", "M014", "M015"),
    *(f"A{n:03}" for n in range(1, 11)),
    *(f"C00{n}" for n in range(1, 8)),
    *(f"E00{n}" for n in range(1, 9)),
    *(f"T00{n}" for n in range(1, 6)),
}
"""Tested in the modules of their families."""


def test_every_check_is_tested_and_explained() -> None:
    codes = [check.code for check in CHECKS]
    assert set(codes) == DAMAGE.keys() | OTHERS
    assert not DAMAGE.keys() & OTHERS
    assert len(set(codes)) == len(codes)
    for check in CHECKS:
        assert re.fullmatch(r"[PIMACET]\d{3}", check.code)
        assert check.title
        assert check.reason.endswith(".")
        assert check.fix


def test_a_jpeg_mask_is_noisy_and_no_png(data: Data) -> None:
    data.image("n.jpg", encode(photo((256, 256)), "JPEG"))
    data.mask("n.jpg", encode(Image.fromarray(ellipse((256, 256))), "JPEG"))
    assert data.codes() == {"M007": ["masks/n.jpg"], "M008": ["masks/n.jpg"]}


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "GIF", "AVIF"])
def test_formats_without_an_end_marker_are_decoded(data: Data, kind: str) -> None:
    content = encode(photo(), kind)
    pair(data, f"x.{kind.lower()}", content[: len(content) // 2])
    assert data.codes()["I001"] == [f"faces/x.{kind.lower()}"]


def test_damage_in_the_middle_of_a_webp_needs_deep(data: Data) -> None:
    content = encode(photo((256, 256)), "WEBP", lossless=True)
    half = len(content) // 2
    data.image("c.webp", content[:half] + bytes(len(content) - half))
    data.mask("c.png", ellipse((256, 256)))
    assert data.codes() == {}
    assert data.codes(deep=True) == {"I001": ["faces/c.webp"]}


def test_a_file_that_vanishes_meanwhile_is_an_issue(data: Data) -> None:
    def vanish(_: int) -> None:
        (data.faces / "z.jpg").unlink(missing_ok=True)

    for i in range(100):
        pair(data, f"x{i:03}.jpg")
    pair(data, "z.jpg")
    report = validate(Dataset.at(data.root), threads=1, observe=vanish)
    assert [(i.code, i.path, i.message) for i in report.issues] == [
        ("I001", "faces/z.jpg", "cannot be read: No such file or directory")
    ]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [(1, "48×64, the image is 64×48: turned?"), (6, "")],
)
def test_sizes_are_compared_as_displayed(data: Data, orientation: int, expected: str) -> None:
    picture = photo() if orientation == 1 else photo((SIZE[1], SIZE[0]))
    data.image("a.jpg", encode(picture, "JPEG", exif=exif(orientation)))
    data.mask("a.png", ellipse((48, 64)) if orientation == 1 else ellipse((64, 48)))
    messages = {i.code: i.message for i in validate(Dataset.at(data.root)).issues}
    assert messages.get("M002", "") == expected


def test_a_mask_of_the_stored_size_names_the_orientation(data: Data) -> None:
    data.image("a.jpg", encode(photo(), "JPEG", exif=exif(6)))
    messages = {i.code: i.message for i in validate(Dataset.at(data.root)).issues}
    assert messages == {
        "I002": "EXIF orientation 6: stored on its side",
        "M002": "64×48, the image is 48×64: turned by EXIF orientation 6?",
    }


def test_messages_name_all_that_is_involved(data: Data) -> None:
    data.image("a.png", encode(photo()))
    (data.masks / "c.png").rename(data.masks / "C.png")
    report = validate(Dataset.at(data.root), ignore=["I011"])
    assert {i.code: i.message for i in report.issues} == {
        "P003": "a.jpg and a.png would share one mask",
        "P009": "the mask masks/C.png differs in case",
    }


@pytest.mark.parametrize("size", [128, 512])
@pytest.mark.parametrize("quality", [60, 75, 90, 95])
def test_compression_is_told_from_softness(size: int, quality: int) -> None:
    hard = ellipse((size, size))
    _, data = cv2.imencode(".jpg", hard, [cv2.IMWRITE_JPEG_QUALITY, quality])
    compressed = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    assert is_noisy(np.bincount(compressed.ravel(), minlength=256).tolist())


@pytest.mark.parametrize("sigma", [0.4, 0.5, 0.7, 1, 2, 5, 15])
def test_soft_edges_are_no_noise(sigma: float) -> None:
    soft = cv2.GaussianBlur(ellipse((512, 512)), (0, 0), sigma)
    assert not is_noisy(np.bincount(soft.ravel(), minlength=256).tolist())


def test_grey_is_said_only_if_asked(data: Data) -> None:
    data.mask("a.png", cv2.GaussianBlur(ellipse(), (0, 0), 3))
    assert data.codes() == {}
    assert data.codes(select=["M"]) == {"M015": ["masks/a.png"]}
