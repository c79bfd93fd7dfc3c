"""The only modules that touch pixels on disk: bytes to arrays, arrays to bytes, bytes to files.

`decode_image`, `decode_mask` and `read_header` take a file's bytes and raise ItemError for anything
that is wrong with them; `encode_image`, `encode_mask` and `normalized` give the same bytes for the
same input every time; `write_part` and `commit` put bytes under a name, all of them or none.

Formats: JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, JPEG 2000, and HEIC with pillow-heif installed.
"""

from lora_prep.imageio.decode import MAX_PIXELS, Header, decode_image, decode_mask, read_header
from lora_prep.imageio.encode import (
    ImageFormat,
    encode_image,
    encode_mask,
    normalized,
    normalized_suffix,
)
from lora_prep.imageio.files import (
    commit,
    discard,
    make_folder,
    new_token,
    replace,
    sweep,
    write_part,
)

__all__ = [
    "MAX_PIXELS",
    "Header",
    "ImageFormat",
    "commit",
    "decode_image",
    "decode_mask",
    "discard",
    "encode_image",
    "encode_mask",
    "make_folder",
    "new_token",
    "normalized",
    "normalized_suffix",
    "read_header",
    "replace",
    "sweep",
    "write_part",
]
