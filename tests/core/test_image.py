"""Decoding of images that viewers and a plain conversion show differently, and of broken ones."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from muco.core import DataError
from muco.core.image import EncodedImage


def saved(image: Image.Image, kind: str, **options) -> EncodedImage:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return EncodedImage(buffer.getvalue())


def png_without_palette() -> EncodedImage:
    """Return a PNG of a palette image with transparency whose palette is missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 3, 0, 0, 0))
    body = header + chunk(b"tRNS", b"\0") + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    return EncodedImage(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("error", [AssertionError(), struct.error("unpack"), KeyError(1), RecursionError()])
def test_whatever_a_decoder_raises_is_a_broken_image(error, monkeypatch):
    def load(self):
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    for use in (EncodedImage.decode, EncodedImage.faithful):
        with pytest.raises(DataError, match="broken image: "):
            use(saved(Image.new("LA", (2, 2)), "PNG"))


def pixels(image: EncodedImage) -> list:
    return np.asarray(image.decode()).tolist()


@pytest.mark.parametrize("use", [EncodedImage.decode, EncodedImage.faithful, lambda image: image.size])
def test_a_palette_png_without_palette_is_a_broken_image(use):
    with pytest.raises(DataError, match="broken image: "):
        use(png_without_palette())


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    assert pixels(saved(image, "PNG")) == [[[0, 0, 0], [0, 0, 0]]]
    assert pixels(saved(image, "PNG").faithful()) == [[[255, 255, 255], [0, 0, 0]]]


def test_a_transparent_colour_of_a_palette_is_laid_on_white_or_kept_without_its_mark():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    encoded = saved(image, "PNG", transparency=1)
    assert pixels(encoded.faithful()) == [[[10, 20, 30], [255, 255, 255]]]
    assert pixels(encoded) == [[[10, 20, 30], [40, 50, 60]]]
    assert "transparency" not in encoded.decode().info


def test_grey_of_16_bits_is_scaled():
    image = Image.fromarray(np.array([[0, 255, 32768, 65535]], dtype=np.uint16))
    for kind in ("PNG", "TIFF"):
        assert pixels(saved(image, kind).faithful()) == [[[grey] * 3 for grey in (0, 0, 128, 255)]]


CORNERS = ["tl", "tr", "br", "bl", "tl", "tr", "br", "bl"]


@pytest.mark.parametrize(("orientation", "corner"), list(enumerate(CORNERS, 1)))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind, orientation, corner):
    drawn = np.zeros((32, 64, 3), np.uint8)
    drawn[:8, :8] = 255  # top left as stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = saved(Image.fromarray(drawn), kind, exif=exif).faithful()
    shown = np.asarray(image.decode())[:, :, 0]
    assert image.size == ((64, 32) if orientation < 5 else (32, 64)) == (shown.shape[1], shown.shape[0])
    at = (
        slice(None, 4) if "t" in corner else slice(-4, None),
        slice(None, 4) if "l" in corner else slice(-4, None),
    )
    assert shown[at].min() > 200
    assert (shown > 128).sum() == 64


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_an_ordinary_image_is_itself(kind):
    image = saved(Image.new("RGB", (3, 2), "red"), kind)
    assert image.faithful() is image
    opaque = saved(Image.new("RGBA", (3, 2), "red"), "PNG")
    assert opaque.faithful() is opaque


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_an_animation_the_first_frame_is_read(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("blue", "red")]
    image = saved(
        frames[0],
        kind,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if kind == "WEBP" else {}),
    )
    assert pixels(image)[0][0] == [0, 0, 255]
    assert image.size == (4, 4)
