"""What is in a file comes out as upright sRGB, or as one clear error."""

import io
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import AvifImagePlugin, GifImagePlugin, Image, ImageFile, ImageOps

from lora_prep import imageio
from lora_prep.errors import ItemError
from tests.imageio import pictures
from tests.imageio.pictures import chunk, encode, exif, png_16_bit, png_header, scene

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about the damage

GREY = np.asarray(Image.fromarray(scene()).convert("L"))
GREY_RGB = np.dstack([GREY] * 3)
ONE_BIT = np.where(GREY > 128, 255, 0).astype(np.uint8)


def difference(image: np.ndarray, expected: np.ndarray) -> int:
    assert image.shape == expected.shape
    return int(np.abs(image.astype(int) - expected).max())


def error(data: bytes, code: str, **options: int) -> str:
    """All four readers refuse the data in the same way, in one line."""
    messages = set()
    for read in (imageio.read_header, imageio.decode_image, imageio.decode_mask):
        with pytest.raises(ItemError) as caught:
            read(data, **options)
        assert caught.value.code == code
        messages.add(str(caught.value))
    (message,) = messages
    assert "\n" not in message
    assert len(message) < 260
    return message


# format, mode, how far off a channel may be, options of Pillow's encoder
PLAIN = [
    ("JPEG", "RGB", 4, {"quality": 95, "subsampling": 0}),
    ("JPEG", "RGB", 4, {"quality": 95, "subsampling": 0, "progressive": True}),
    ("PNG", "RGB", 0, {}),
    ("PNG", "RGBA", 0, {}),
    ("WEBP", "RGB", 0, {"lossless": True}),
    ("WEBP", "RGB", 24, {"quality": 95}),
    ("BMP", "RGB", 0, {}),
    ("TIFF", "RGB", 0, {}),
    ("TIFF", "RGBA", 0, {}),
    ("TIFF", "RGB", 0, {"compression": "tiff_lzw"}),
    ("TIFF", "RGB", 0, {"compression": "tiff_adobe_deflate"}),
    ("TIFF", "RGB", 0, {"compression": "packbits"}),
    ("TIFF", "RGB", 0, {"big_tiff": True}),
    ("TIFF", "YCbCr", 4, {}),
    ("TIFF", "LAB", 12, {}),
    ("AVIF", "RGB", 24, {"quality": 95}),
    ("JPEG2000", "RGB", 0, {}),
    ("JPEG2000", "RGB", 0, {"no_jp2": True}),
]


@pytest.mark.parametrize(("format", "mode", "tolerance", "options"), PLAIN)
def test_colour_of_every_format(format, mode, tolerance, options):
    data = encode(Image.fromarray(scene()).convert(mode), format, **options)
    image = imageio.decode_image(data)
    assert difference(image, scene()) <= tolerance
    assert image.flags.c_contiguous
    assert image.flags.writeable
    header = imageio.read_header(data)
    assert header == imageio.Header(
        format, 40, 24, 40, 24, mode, 8, 1, animated=False, icc=header.icc, gps=False
    )


GREY_AND_PALETTE = [
    *(
        (format, mode)
        for format in ("PNG", "TIFF", "GIF", "AVIF")
        for mode in ("L", "LA", "1", "P")
    ),
    *((format, mode) for format in ("BMP",) for mode in ("L", "1", "P")),
    *((format, mode) for format in ("JPEG",) for mode in ("L", "1")),
    *((format, mode) for format in ("JPEG2000",) for mode in ("L", "LA")),
]


@pytest.mark.parametrize(("format", "mode"), GREY_AND_PALETTE)
def test_grey_and_palette_of_every_format(format, mode):
    picture = Image.fromarray(ONE_BIT if mode == "1" else GREY).convert(mode)
    quality = {"quality": 100} if format in ("AVIF", "JPEG") else {}
    image = imageio.decode_image(encode(picture, format, **quality))
    expected = np.dstack([ONE_BIT] * 3) if mode == "1" else GREY_RGB
    assert difference(image, expected) <= (4 if quality else 0)


def test_a_picture_larger_than_a_strip_is_whole():
    tall = np.random.default_rng(0).integers(0, 256, (1500, 1100, 3), dtype=np.uint8)
    assert difference(imageio.decode_image(imageio.encode_image(tall, "png")), tall) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format", "tolerance", "options"),
    [
        ("JPEG", 4, {"quality": 95, "subsampling": 0}),
        ("PNG", 0, {}),
        ("WEBP", 0, {"lossless": True}),
        ("TIFF", 0, {}),
        ("AVIF", 24, {"quality": 95}),
    ],
)
def test_orientation_is_applied_once(format, tolerance, options, orientation):
    pixels = pictures.stored(scene(), orientation)
    data = encode(pixels, format, exif=exif(orientation, gps=True), **options)
    assert difference(imageio.decode_image(data), scene()) <= tolerance
    assert difference(imageio.decode_mask(data), scene()[..., 0]) <= tolerance
    header = imageio.read_header(data)
    assert header.orientation == orientation
    assert (header.width, header.height) == (40, 24)
    assert (header.stored_height, header.stored_width) == pixels.shape[:2]
    assert header.gps
    trainers = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert difference(imageio.decode_image(data), np.asarray(trainers)) == 0


def _png_with(*chunks: bytes, behind: bool) -> bytes:
    """The scene, stored sideways, and the chunks before or behind its pixels."""
    plain = encode(pictures.stored(scene(), 6), "PNG")
    at = len(plain) - 12 if behind else 33
    return plain[:at] + b"".join(chunks) + plain[at:]


@pytest.mark.parametrize(
    "data",
    [
        _png_with(chunk(b"eXIf", exif(6)[6:]), behind=False),
        _png_with(chunk(b"eXIf", exif(6)[6:]), behind=True),
        _png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + pictures.xmp(6)), behind=False),
        encode(pictures.stored(scene(), 6), "WEBP", lossless=True, xmp=pictures.xmp(6)),
    ],
    ids=["eXIf", "eXIf behind the pixels", "XMP in PNG", "XMP in WebP"],
)
def test_orientation_in_unusual_places(data):
    assert imageio.read_header(data).orientation == 6
    assert difference(imageio.decode_image(data), scene()) == 0
    trainers = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert difference(imageio.decode_image(data), np.asarray(trainers)) == 0


@pytest.mark.parametrize("tags", [b"Exif\0\0", b"Exif\0\0garbage", exif(6)[:20], exif(9), exif(0)])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_is_no_damaged_picture(format, tags):
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
    data = encode(scene(), format, exif=tags, **options.get(format, {}))
    assert imageio.read_header(data).orientation == 1
    assert difference(imageio.decode_image(data), scene()) <= 4


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "GIF"])
def test_the_header_does_not_need_the_pixels(format):
    data = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), format)
    with pytest.raises(ItemError):
        imageio.decode_image(data[:-1000])
    assert imageio.read_header(data[:-1000]) == imageio.read_header(data)


def test_the_header_decodes_nothing(monkeypatch):
    loads = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: loads.append(self))
    for data in (encode(scene(), "PNG"), encode(scene(), "PNG", save_all=True), pictures.gif(2)):
        imageio.read_header(data)
    assert loads == []


# deep channels

EVERY_VALUE = np.arange(65536, dtype=np.uint16).reshape(256, 256)
SCALED = np.rint(EVERY_VALUE / 257).astype(np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        png_16_bit(EVERY_VALUE),
        encode(Image.fromarray(EVERY_VALUE), "TIFF"),
        encode(Image.fromarray(EVERY_VALUE.astype(">u2")), "TIFF"),
        encode(Image.fromarray(EVERY_VALUE), "TIFF", compression="tiff_lzw"),
        encode(Image.fromarray(EVERY_VALUE), "JPEG2000"),
        encode(Image.fromarray(EVERY_VALUE.astype(np.int32)), "TIFF"),
        encode(Image.fromarray((EVERY_VALUE / 65535).astype(np.float32)), "TIFF"),
    ],
    ids=["png", "tiff", "tiff big-endian", "tiff lzw", "jpeg 2000", "tiff 32-bit", "tiff float"],
)
def test_deep_grey_is_scaled_not_clipped(data):
    assert difference(imageio.decode_mask(data), SCALED) == 0
    assert difference(imageio.decode_image(data), np.dstack([SCALED] * 3)) == 0
    assert imageio.read_header(data).bits >= 16


def test_12_bit_grey_reaches_white():
    values = np.arange(4096).reshape(64, 64)
    data = pictures.tiff_12_bit(values)
    assert imageio.read_header(data).bits == 12
    assert difference(imageio.decode_mask(data), np.rint(values / 4095 * 255)) == 0


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_deep_colour_loses_at_most_a_level(channels):
    values = np.dstack([EVERY_VALUE] * channels)
    if channels in (2, 4):
        values[..., -1] = 65535
    data = png_16_bit(values)
    assert imageio.read_header(data).bits == 16
    assert difference(imageio.decode_image(data), np.dstack([SCALED] * 3)) <= 1


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.full((2, 2), 1.5, np.float32), "floating-point pixels run from 1.5 to 1.5"),
        (np.full((2, 2), np.nan, np.float32), "floating-point pixels run from nan"),
        (np.full((2, 2), -1, np.int32), "32-bit pixels run from -1"),
        (np.full((2, 2), 65536, np.int32), "32-bit pixels run from 65536"),
    ],
)
def test_deep_values_of_unknown_range_are_refused(values, told):
    data = encode(Image.fromarray(values), "TIFF")
    for decode in (imageio.decode_image, imageio.decode_mask):
        with pytest.raises(ItemError, match=told) as caught:
            decode(data)
        assert caught.value.code == "unsupported"


# alpha

RAMP = np.linspace(0, 255, 40, dtype=np.uint8)[None].repeat(24, 0)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.rint(colour * share + 255 * (1 - share))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composited_over_white(format):
    pixels = np.dstack([scene(), RAMP])
    pixels[:, 0, :3] = 0  # what lies under full transparency must not show
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    data = encode(pixels, format, **options)
    assert difference(imageio.decode_image(data), over_white(pixels[..., :3], RAMP)) <= 1
    assert (imageio.decode_image(data)[:, 0] == 255).all()


@pytest.mark.parametrize("colours", [scene(), GREY[..., None]], ids=["colour", "grey"])
def test_premultiplied_alpha_is_undone(colours):
    premultiplied = np.rint(colours * (RAMP[..., None] / 255)).astype(np.uint8)
    data = bytearray(encode(np.dstack([premultiplied, RAMP]), "TIFF"))
    extra_samples = data.index(struct.pack("<HHIHH", 338, 3, 1, 2, 0))
    data[extra_samples + 8] = 1  # "associated" alpha
    opaque_enough = RAMP[0] > 100
    expected = over_white(np.broadcast_to(colours, (24, 40, 3)), RAMP)[:, opaque_enough]
    image = imageio.decode_image(bytes(data))[:, opaque_enough]
    assert difference(image, expected) <= 3
    mask = imageio.decode_mask(bytes(data))[:, opaque_enough]
    assert difference(mask, colours[:, opaque_enough, 0]) <= 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB"])
def test_transparency_in_other_modes(mode):
    picture = Image.fromarray(ONE_BIT)
    if mode == "LA":
        picture = Image.merge("LA", [picture, picture])  # black is transparent
        data = encode(picture, "PNG")
    elif mode == "P":
        data = encode(picture.convert("P"), "PNG", transparency=bytes([0] + [255] * 255))
    else:
        black = {"1": 0, "L": 0, "RGB": (0, 0, 0)}[mode]
        data = encode(picture.convert(mode), "PNG", transparency=black)
    assert (imageio.decode_image(data) == 255).all()
    assert difference(imageio.decode_mask(data), ONE_BIT) == 0


def test_transparent_palette_entry_of_a_gif():
    palette = Image.fromarray(scene()).quantize(16)
    erased = np.asarray(palette) == 3
    image = imageio.decode_image(encode(palette, "GIF", transparency=3))
    assert erased.any()
    assert (image[erased] == 255).all()
    assert difference(image[~erased], np.asarray(palette.convert("RGB"))[~erased]) == 0


# frames


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames(format):
    frames = [Image.fromarray(ONE_BIT).convert("RGB"), Image.new("RGB", (40, 24), "red")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert imageio.read_header(data).animated
    assert difference(imageio.decode_image(data), np.dstack([ONE_BIT] * 3)) == 0


def test_a_preview_behind_a_jpeg_is_no_animation():
    data = encode(scene(), "MPO", save_all=True, append_images=[Image.new("RGB", (40, 24))])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    header = imageio.read_header(data)
    assert (header.format, header.animated) == ("JPEG", False)
    assert difference(imageio.decode_image(data), scene()) < 40


def test_frames_are_not_counted(monkeypatch):
    data = pictures.gif(frames=100_000)
    seeks = []
    seek = GifImagePlugin.GifImageFile._seek

    def counting(self, frame, *args):
        seeks.append(frame)
        return seek(self, frame, *args)

    monkeypatch.setattr(GifImagePlugin.GifImageFile, "_seek", counting)
    assert imageio.read_header(data).animated
    assert (imageio.decode_image(data) == [[[0, 0, 0], [255, 255, 255]]]).all()
    assert len(seeks) < 10
    assert not imageio.read_header(pictures.gif(frames=1)).animated


def test_a_damaged_second_frame_does_not_matter():
    data = pictures.gif(frames=1)[:-1] + b","
    assert imageio.read_header(data).animated
    assert imageio.decode_image(data).shape == (1, 2, 3)


# masks

BLACK_AND_WHITE = [0, 0, 0, 255, 255, 255]
LABELS = [128, 0, 200, 0, 128, 0]
WHITE = np.full_like(ONE_BIT, 255)


def _two_labels(palette: list[int]) -> bytes:
    picture = Image.fromarray((ONE_BIT // 255).astype(np.uint8)).convert("P")
    picture.putpalette(palette)
    return encode(picture, "PNG")


RED_128_OR_0 = np.where(ONE_BIT, 0, 128).astype(np.uint8)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(ONE_BIT, "PNG"), ONE_BIT),
        (encode(GREY, "PNG"), GREY),
        (encode(Image.fromarray(ONE_BIT).convert("1"), "PNG"), ONE_BIT),
        (encode(Image.fromarray(ONE_BIT).convert("1"), "TIFF", compression="group4"), ONE_BIT),
        (_two_labels(BLACK_AND_WHITE), ONE_BIT),
        (_two_labels(LABELS), RED_128_OR_0),
        (encode(ONE_BIT // 255, "PNG"), ONE_BIT // 255),
        (encode(np.dstack([ONE_BIT, GREY, GREY]), "PNG"), ONE_BIT),
        (encode(np.dstack([ONE_BIT, GREY, GREY, RAMP]), "PNG"), ONE_BIT),
        (encode(np.dstack([ONE_BIT, RAMP]), "PNG"), ONE_BIT),
        (encode(np.dstack([WHITE] * 3 + [ONE_BIT]), "PNG"), WHITE),
        (png_16_bit(np.where(ONE_BIT, 255, 0).astype(np.uint16)), ONE_BIT // 255),
        (png_16_bit(np.where(ONE_BIT, 65535, 0).astype(np.uint16)), ONE_BIT),
        (encode(np.dstack([ONE_BIT] * 3), "PNG", icc_profile=pictures.rgb_profile()), ONE_BIT),
    ],
    ids=[
        "L", "soft L", "1", "1 in TIFF", "palette", "palette of labels", "0 and 1", "red", "RGBA",
        "LA", "mask only in the alpha", "16-bit 0 and 255", "16-bit", "profile",
    ],
)  # fmt: skip
def test_masks_are_read_as_trainers_read_them(data, expected):
    mask = imageio.decode_mask(data)
    assert difference(mask, expected) == 0
    assert mask.flags.c_contiguous
    assert mask.flags.writeable
    if imageio.read_header(data).bits < 16:  # where diffusion-pipe clips
        diffusion_pipe = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[..., 0]
        assert difference(mask, diffusion_pipe) == 0


def test_a_profile_does_not_change_weights():
    data = encode(np.dstack([ONE_BIT, GREY, GREY]), "PNG", icc_profile=pictures.rgb_profile("bgr"))
    assert difference(imageio.decode_mask(data), ONE_BIT) == 0


# what cannot be read


def test_an_empty_file():
    assert "empty (0 bytes)" in error(b"", "empty")


@pytest.mark.parametrize("data", [b"\0", b"<!DOCTYPE html><html>", b"MZ\x90", bytes(1000)])
def test_no_image(data):
    assert "not an image" in error(data, "unreadable")


def test_the_suffix_does_not_matter_but_the_content_does():
    assert imageio.read_header(encode(scene(), "WEBP")).format == "WEBP"
    assert imageio.read_header(encode(scene(), "BMP")).format == "BMP"


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_heic_without_its_plugin(monkeypatch):
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "pip install pillow-heif" in error(HEIC, "unsupported")


def test_heic_with_a_registered_opener(monkeypatch):
    stand_in = encode(scene(), "AVIF", quality=95)

    def open_heif(file, name):
        return AvifImagePlugin.AvifImageFile(io.BytesIO(stand_in))

    monkeypatch.setitem(Image.OPEN, "HEIF", (open_heif, None))
    assert imageio.read_header(HEIC).format == "HEIF"
    assert difference(imageio.decode_image(HEIC), imageio.decode_image(stand_in)) == 0


CUT = {
    "JPEG": encode(scene(96, 160), "JPEG"),
    "progressive JPEG": encode(scene(96, 160), "JPEG", progressive=True),
    "CMYK JPEG": encode(Image.fromarray(scene(96, 160)).convert("CMYK"), "JPEG"),
    "PNG": encode(scene(96, 160), "PNG"),
    "WebP": encode(scene(96, 160), "WEBP"),
    "lossless WebP": encode(scene(96, 160), "WEBP", lossless=True),
    "BMP": encode(scene(96, 160), "BMP"),
    "TIFF": encode(scene(96, 160), "TIFF"),
    "LZW TIFF": encode(scene(96, 160), "TIFF", compression="tiff_lzw"),
    "deflate TIFF": encode(scene(96, 160), "TIFF", compression="tiff_adobe_deflate"),
    "GIF": encode(scene(96, 160), "GIF"),
    "AVIF": encode(scene(96, 160), "AVIF"),
    "JPEG 2000": encode(scene(96, 160), "JPEG2000"),
}


@pytest.mark.parametrize("name", CUT)
@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.01, 0.999))
def test_a_file_that_is_cut_off_never_gives_other_pixels(name, share):
    data = CUT[name]
    whole = imageio.decode_image(data)
    with suppress(ItemError):  # where it is readable, what is missing is not the picture
        assert difference(imageio.decode_image(data[: int(len(data) * share)]), whole) == 0


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("name", CUT)
def test_half_or_most_of_a_file_is_refused(name, share):
    data = CUT[name]
    with pytest.raises(ItemError, match=r"damaged, cut off|not an image") as caught:
        imageio.decode_image(data[: int(len(data) * share)])
    assert caught.value.code == "unreadable"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_flipped_bit_in_a_png_never_gives_other_pixels(draw):
    data = bytearray(encode(scene(), "PNG"))
    at = draw.draw(st.integers(0, len(data) - 1))
    data[at] ^= 1 << draw.draw(st.integers(0, 7))
    with suppress(ItemError):  # the checksum of the end marker may be wrong
        assert difference(imageio.decode_image(bytes(data)), scene()) == 0


# limits


def _bomb(format: str) -> bytes:
    """60,000 × 60,000 pixels in under a kilobyte."""
    if format == "TIFF":
        return pictures.tiff(60_000, 60_000, 8, bytes(9))
    if format == "PNG":
        return (
            png_header(60_000, 60_000)
            + chunk(b"IDAT", zlib.compress(bytes(9)))
            + chunk(b"IEND", b"")
        )
    data = bytearray(encode(scene(8, 8), format))
    if format == "JPEG":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    elif format == "BMP":
        data[18:26] = struct.pack("<ii", 60_000, 60_000)
    elif format == "GIF":
        data[6:10] = struct.pack("<HH", 60_000, 60_000)
    return bytes(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "GIF", "TIFF"])
def test_a_bomb_is_refused_before_it_is_decoded(format):
    assert "limit" in error(_bomb(format), "too-large")


@pytest.mark.parametrize(
    "format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000"]
)
def test_the_limit_counts_in_every_format(format):
    data = encode(scene(), format)
    assert "40×24 is more than the limit of 959" in error(data, "too-large", max_pixels=959)
    assert imageio.decode_image(data, max_pixels=960).shape == (24, 40, 3)


def test_pillows_own_limit_neither_warns_nor_counts(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for format in ("JPEG", "PNG", "BMP", "AVIF", "JPEG2000"):
            assert imageio.decode_image(encode(scene(), format)).shape == (24, 40, 3)
    data = encode(scene(), "TIFF")
    with pytest.raises(ItemError, match="too large to decode") as caught:
        imageio.decode_image(data)
    assert caught.value.code == "too-large"


def test_pillows_settings_are_left_alone():
    imageio.decode_image(encode(scene(), "JPEG"))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3


def test_threads_do_not_disturb_each_other():
    files = [
        encode(scene(200, 300), "JPEG", icc_profile=pictures.rgb_profile("bgr"), exif=exif(6)),
        encode(scene(200, 300), "PNG", icc_profile=pictures.rgb_profile("grb")),
        encode(scene(200, 300), "TIFF", compression="tiff_lzw"),
        encode(scene(200, 300), "AVIF"),
    ]
    alone = [imageio.decode_image(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(imageio.decode_image, files * 10))
    for i, image in enumerate(together):
        assert difference(image, alone[i % 4]) == 0


def test_messages_are_one_short_printable_line(monkeypatch):
    def damaged(file, name):
        raise ValueError("two\nlines, an escape \x1b[31m and " + "more " * 100)

    monkeypatch.setitem(Image.OPEN, "HEIF", (damaged, None))
    message = error(HEIC, "unreadable")
    assert "HEIF data is damaged" in message
    assert "two lines, an escape ?[31m and more more" in message
    assert message.isprintable()


def test_the_mask_that_opencv_wrote():
    done, data = cv2.imencode(".png", GREY)
    assert done
    assert difference(imageio.decode_mask(data.tobytes()), GREY) == 0
