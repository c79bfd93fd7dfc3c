"""What is written is the pixels and nothing else, the same bytes every time."""

import io
import re

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, TiffImagePlugin

from lora_prep import imageio
from lora_prep.errors import ItemError
from tests.imageio import pictures
from tests.imageio.pictures import encode, exif, markers, scene, segment, with_segments

FORMATS = ("jpeg", "png", "webp", "bmp", "tiff")


def difference(image: np.ndarray, expected: np.ndarray) -> int:
    assert image.shape == expected.shape
    return int(np.abs(image.astype(int) - expected).max())


def pillow(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def opencv(data: bytes) -> np.ndarray:
    """Pixels as a trainer sees them that knows neither EXIF nor ICC."""
    flags = cv2.IMREAD_UNCHANGED
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), flags), cv2.COLOR_BGR2RGB)


# masks


@settings(max_examples=150, deadline=None)
@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_any_mask_survives(mask):
    data = imageio.encode_mask(mask)
    assert difference(imageio.decode_mask(data), mask) == 0
    assert data == imageio.encode_mask(mask.copy())
    assert set(pictures.png_chunks(data)) == {b"IHDR", b"IDAT", b"IEND"}


def test_a_mask_is_8_bit_grey_for_everybody():
    mask = scene()[..., 0].copy()
    data = imageio.encode_mask(mask)
    header = imageio.read_header(data)
    assert (header.format, header.mode, header.bits) == ("PNG", "L", 8)
    assert difference(np.asarray(pillow(data)), mask) == 0
    assert difference(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), mask) == 0


def test_views_are_encoded_like_copies():
    mask = scene()[::2, ::-1, 1]
    assert imageio.encode_mask(mask) == imageio.encode_mask(np.ascontiguousarray(mask))
    view = scene(60, 60)[10:40, 50:5:-1]
    for format in FORMATS:
        data = imageio.encode_image(view, format)
        assert data == imageio.encode_image(np.ascontiguousarray(view), format)


# images


@pytest.mark.parametrize("format", FORMATS)
def test_images_survive(format):
    data = imageio.encode_image(scene(), format, lossless=True)
    assert data == imageio.encode_image(scene(), format, lossless=True)
    assert difference(imageio.decode_image(data), scene()) <= (4 if format == "jpeg" else 0)
    assert imageio.read_header(data).format == format.upper()
    assert set(pillow(data).info) <= {
        "jfif", "jfif_version", "jfif_unit", "jfif_density", "compression", "resolution", "dpi",
        "loop", "background", "timestamp", "duration",
    }  # fmt: skip


def test_jpeg_keeps_the_resolution_of_colour():
    checkers = np.where(np.indices((32, 32)).sum(0) % 2, 255, 0)[..., None]
    picture = (checkers * [1, 0, 0]).astype(np.uint8)
    data = imageio.encode_image(picture, "jpeg")
    frame = data.index(b"\xff\xc0")
    assert [data[frame + 11 + 3 * i] for i in range(3)] == [0x11, 0x11, 0x11]
    assert difference(imageio.decode_image(data), picture) < 60


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_quality_counts(format):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sizes = [len(imageio.encode_image(noise, format, quality=q)) for q in (30, 60, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2


@pytest.mark.parametrize(("format", "side"), [("jpeg", 65_501), ("webp", 16_384)])
def test_formats_with_short_sides(format, side):
    strip = np.zeros((1, side, 3), np.uint8)
    with pytest.raises(ItemError, match=rf"{side}×1 does not fit into {format.upper()}") as caught:
        imageio.encode_image(strip, format)
    assert caught.value.code == "too-large"
    assert imageio.decode_image(imageio.encode_image(strip[:, 1:], format)).shape[1] == side - 1
    assert imageio.decode_image(imageio.encode_image(strip, "png")).shape == strip.shape


# normalized: JPEG without loss

JPEG = encode(scene(96, 160), "JPEG", quality=90)
PHOTOSHOP = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0e\x1c\x02\x78\0\x09a caption "
SECRETS = (
    segment(0xE1, exif(1, gps=True)),
    segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>somebody</x:xmpmeta>"),
    segment(0xE2, b"ICC_PROFILE\0\x01\x01" + pictures.rgb_profile()),
    segment(0xED, PHOTOSHOP),
    segment(0xFE, b"a comment"),
    segment(0xE0, b"JFXX\0\x10" + JPEG),
    segment(0xEF, b"a maker's own"),
)
WORDS = (
    b"Exif",
    b"Camera maker",
    b"1999:12:31",
    b"somebody",
    b"ICC_PROFILE",
    b"caption",
    b"comment",
)
WORDS += (b"JFXX", b"maker's own")


@pytest.mark.parametrize(
    "plain",
    [
        JPEG,
        encode(scene(96, 160), "JPEG", progressive=True),
        encode(scene(96, 160), "JPEG", subsampling=0, optimize=True),
        encode(scene(96, 160), "JPEG", restart_marker_blocks=2),
        encode(scene(96, 160), "JPEG", qtables="web_low"),
        encode(scene(96, 160), "JPEG", keep_rgb=True),
    ],
    ids=["baseline", "progressive", "4:4:4", "restart markers", "tables", "RGB channels"],
)
def test_a_jpeg_loses_its_metadata_and_nothing_else(plain):
    if plain[3] == 0xE0:
        data = with_segments(plain, *SECRETS) + b"behind the end" + JPEG
    else:  # the RGB one starts with Adobe's segment
        data = plain[:2] + b"".join(SECRETS) + plain[2:]
    assert imageio.read_header(data).gps
    clean = imageio.normalized(data, ".jpg")
    for word in WORDS:
        assert word in data
        assert word not in clean
    assert clean == imageio.normalized(plain, ".jpg")
    first_table = plain.index(b"\xff\xdb")
    assert clean[clean.index(b"\xff\xdb") :] == plain[first_table:]
    assert difference(np.asarray(pillow(clean)), np.asarray(pillow(plain))) == 0
    assert imageio.normalized(clean, ".jpg") == clean


def test_a_jpeg_keeps_what_its_colours_need():
    jfif = imageio.normalized(JPEG, ".jpg")
    assert markers(jfif)[0] == 0xE0
    rgb = imageio.normalized(encode(scene(), "JPEG", keep_rgb=True), ".jpg")
    assert markers(rgb)[0] == 0xEE
    assert difference(imageio.decode_image(rgb), scene()) <= 8


def test_the_thumbnail_in_the_jfif_segment_goes():
    assert JPEG[:4] == b"\xff\xd8\xff\xe0"
    thumbnail = segment(0xE0, JPEG[6:18] + b"\x01\x01" + b"RGB")
    clean = imageio.normalized(JPEG[:2] + thumbnail + JPEG[20:], ".jpg")
    assert clean == imageio.normalized(JPEG, ".jpg")


def test_fill_bytes_and_comments_between_scans():
    progressive = encode(scene(96, 160), "JPEG", progressive=True)
    second_scan = [m.start() for m in re.finditer(b"\xff\xda", progressive)][1]
    data = (
        progressive[:second_scan]
        + b"\xff\xff"
        + segment(0xFE, b"hello")
        + progressive[second_scan:]
    )
    clean = imageio.normalized(data, ".jpg")
    assert b"hello" not in clean
    assert difference(np.asarray(pillow(clean)), np.asarray(pillow(progressive))) == 0


def test_previews_behind_a_jpeg_go():
    data = encode(scene(96, 160), "MPO", save_all=True, append_images=[Image.new("RGB", (40, 24))])
    clean = imageio.normalized(data, ".JPG")
    assert b"MPF" not in clean
    assert clean.count(b"\xff\xd8\xff") == 1
    assert pillow(clean).format == "JPEG"
    assert difference(np.asarray(pillow(clean)), np.asarray(pillow(data))) == 0


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0.01, 0.99))
def test_a_cut_jpeg_is_never_passed_on(share):
    with pytest.raises(ItemError):
        imageio.normalized(JPEG[: int(len(JPEG) * share)], ".jpg")


def test_a_damaged_jpeg_with_an_end_is_never_passed_on():
    huffman_table = JPEG.index(b"\xff\xc4")
    data = JPEG[: huffman_table + 5] + b"\xff" * 16 + JPEG[huffman_table + 21 :]
    assert imageio.read_header(data).mode == "RGB"
    with pytest.raises(ItemError, match="JPEG data is damaged"):
        imageio.normalized(data, ".jpg")


# normalized: encoded again


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_jpeg_is_turned_upright(orientation):
    pixels = pictures.stored(scene(96, 160), orientation)
    data = encode(pixels, "JPEG", quality=95, subsampling=0, exif=exif(orientation, gps=True))
    clean = imageio.normalized(data, ".jpg")
    assert b"Exif" not in clean
    assert difference(opencv(clean), scene(96, 160)) <= 6


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(scene()[..., 0].copy(), "JPEG", quality=95), np.dstack([scene()[..., 0]] * 3)),
        (
            encode(
                scene(), "JPEG", quality=95, subsampling=0, icc_profile=pictures.rgb_profile("bgr")
            ),
            scene()[..., ::-1],
        ),
    ],
    ids=["grey", "profile"],
)
def test_a_jpeg_that_is_not_srgb_is_converted(data, expected):
    clean = imageio.normalized(data, ".jpeg")
    assert pillow(clean).mode == "RGB"
    assert not pillow(clean).info.get("icc_profile")
    assert difference(opencv(clean), expected) <= 8


def test_a_cmyk_jpeg_is_converted():
    data = encode(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=95, exif=exif(gps=True))
    clean = imageio.normalized(data, ".jpg")
    assert pillow(clean).mode == "RGB"
    assert difference(opencv(clean), scene()) <= 12


SOURCES = {
    "JPEG": encode(scene(), "JPEG", quality=95, subsampling=0, exif=exif(1, gps=True)),
    "PNG": encode(
        np.dstack([scene(), scene()[..., 0] // 255 + 255]), "PNG", exif=exif(1, gps=True)
    ),
    "16-bit PNG": pictures.png_16_bit(scene().astype(np.uint16) * 257),
    "WebP": encode(scene(), "WEBP", lossless=True, exif=exif(1, gps=True), xmp=pictures.xmp(1)),
    "BMP": encode(scene(), "BMP"),
    "TIFF": encode(scene(), "TIFF", compression="tiff_lzw", description="1999:12:31"),
    "AVIF": encode(scene(), "AVIF", quality=100, subsampling="4:4:4", exif=exif(1, gps=True)),
    "JPEG 2000": encode(scene(), "JPEG2000", comment="1999:12:31"),
}
READ_BY_TRAINERS = {
    ".jpg": "JPEG", ".JPEG": "JPEG", ".png": "PNG", ".Png": "PNG", ".webp": "WEBP", ".bmp": "BMP",
    ".tif": "TIFF", ".TIFF": "TIFF",
}  # fmt: skip
OTHERS = dict.fromkeys([".gif", ".avif", ".HEIC", ".jp2", ""], "PNG")
SUFFIXES = READ_BY_TRAINERS | OTHERS


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("source", SOURCES)
def test_the_suffix_decides_the_format(source, suffix):
    data = SOURCES[source]
    clean = imageio.normalized(data, suffix)
    assert clean == imageio.normalized(data, suffix)
    assert pillow(clean).format == SUFFIXES[suffix]
    for word in (b"Exif", b"Camera maker", b"1999:12:31", b"xmpmeta"):
        assert word not in clean
    header = imageio.read_header(clean)
    assert (header.mode, header.bits, header.orientation) == ("RGB", 8, 1)
    assert (header.gps, header.icc, header.animated) == (False, False, False)
    assert difference(imageio.decode_image(clean), scene()) <= 6
    assert difference(opencv(clean), imageio.decode_image(clean)) <= 1


def test_suffixes_that_trainers_read_are_kept():
    assert {imageio.normalized_suffix(suffix) for suffix in OTHERS} == {".png"}
    for suffix in READ_BY_TRAINERS:
        assert imageio.normalized_suffix(suffix) == suffix


def test_webp_stays_lossy_or_lossless():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    lossless = imageio.normalized(encode(noise, "WEBP", lossless=True, exif=exif(1)), ".webp")
    assert b"VP8L" in lossless
    assert difference(imageio.decode_image(lossless), noise) == 0
    lossy = imageio.normalized(encode(noise, "WEBP", quality=80, exif=exif(1)), ".webp")
    assert b"VP8 " in lossy
    assert b"VP8L" not in lossy


def test_the_first_frame_of_an_animation():
    frames = [Image.fromarray(scene()), Image.new("RGB", (40, 24))]
    for format, suffix in (("GIF", ".gif"), ("PNG", ".png"), ("WEBP", ".webp")):
        data = encode(frames[0], format, save_all=True, append_images=frames[1:])
        clean = imageio.normalized(data, suffix)
        assert not imageio.read_header(clean).animated
        assert difference(imageio.decode_image(clean), imageio.decode_image(data)) <= 6


def test_compressed_tiff_is_written_without_loss():
    clean = imageio.normalized(SOURCES["TIFF"], ".tif")
    assert difference(imageio.decode_image(clean), scene()) == 0
    tags = set(pillow(clean).tag_v2)
    assert tags <= {
        TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH, TiffImagePlugin.BITSPERSAMPLE,
        TiffImagePlugin.COMPRESSION, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION,
        TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.SAMPLESPERPIXEL, TiffImagePlugin.ROWSPERSTRIP,
        TiffImagePlugin.STRIPBYTECOUNTS, TiffImagePlugin.PLANAR_CONFIGURATION,
        TiffImagePlugin.FILLORDER, TiffImagePlugin.PREDICTOR, TiffImagePlugin.SAMPLEFORMAT,
    }  # fmt: skip


def test_limits_reach_normalized():
    for data in (JPEG, encode(scene(96, 160), "PNG")):
        with pytest.raises(ItemError) as caught:
            imageio.normalized(data, ".jpg", max_pixels=1000)
        assert caught.value.code == "too-large"
