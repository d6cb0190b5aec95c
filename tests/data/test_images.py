"""Image files are read as viewers show them: orientation, transparency, depth, frames."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from normjax.data.images import FIRST_FRAME, ON_WHITE, decode_image

ORIENTATION = 0x0112
SHOWN = {  # how a viewer shows the stored pixels, by the definition of the tag
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored[:, ::-1].swapaxes(0, 1),
}


def random_pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize(
    ("suffix", "options", "shape"),
    [
        ("png", {}, (4, 6, 3)),
        ("png", {}, (4, 6)),
        ("tiff", {}, (4, 6, 3)),
        ("tiff", {"compression": "tiff_lzw"}, (4, 6)),
        ("webp", {"lossless": True}, (4, 6, 3)),
    ],
)
def test_orientation_is_applied(tmp_path, orientation, suffix, options, shape):
    stored, exif = random_pixels(*shape), Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(stored).save(path, exif=exif, **options)
    pixels, remarks = decode_image(str(path))
    expected = SHOWN[orientation](stored)
    np.testing.assert_array_equal(pixels, expected.reshape(*expected.shape[:2], -1))
    assert remarks == []


def test_orientation_of_a_jpeg(tmp_path):
    stored, exif = np.zeros((16, 32), np.uint8), Image.Exif()
    stored[:, 16:] = 255
    exif[ORIENTATION] = 8
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif)
    pixels, _ = decode_image(str(tmp_path / "a.jpg"))
    assert pixels.shape == (32, 16, 1)
    assert pixels[:16].min() > 250 and pixels[16:].max() < 5  # what was right is now above


def save_palette(path, alphas):
    """A palette image with one transparency per color."""
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 0, 7, 7, 7])
    image.save(path, transparency=bytes(alphas))


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("png", {}), ("tiff", {}), ("webp", {"lossless": True, "exact": True})],
)
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_on_white(tmp_path, suffix, options, mode):
    stored = random_pixels(5, 3, len(mode))
    stored[0, 0, -1], stored[0, 1, -1] = 0, 255
    Image.fromarray(stored, mode).save(tmp_path / f"a.{suffix}", **options)
    pixels, remarks = decode_image(str(tmp_path / f"a.{suffix}"))
    color, alpha = stored[..., :-1].astype(float), stored[..., -1:] / 255
    expected = alpha * color + (1 - alpha) * 255
    assert np.abs(pixels - expected).max() <= 1  # rounded, perhaps twice
    assert (pixels[0, 0] == 255).all() and (pixels[0, 1] == stored[0, 1, :-1]).all()
    assert remarks == [ON_WHITE]


@pytest.mark.parametrize("shape", [(5, 3, 4), (5, 3, 2)])
def test_an_opaque_alpha_channel_is_no_remark(tmp_path, shape):
    stored = random_pixels(*shape)
    stored[..., -1] = 255
    Image.fromarray(stored).save(tmp_path / "a.png")
    pixels, remarks = decode_image(str(tmp_path / "a.png"))
    np.testing.assert_array_equal(pixels, stored[..., :-1])
    assert remarks == []


def test_a_transparent_color_is_white(tmp_path):
    save_palette(tmp_path / "a.png", [255, 0, 255])
    Image.fromarray(np.array([[9, 8], [7, 9]], np.uint8)).save(tmp_path / "b.png", transparency=9)
    Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)).save(
        tmp_path / "c.png", transparency=(4, 5, 6)
    )
    for name, expected in (
        ("a", [[[10, 20, 30], [255] * 3], [[7] * 3, [10, 20, 30]]]),
        ("b", [[[255], [8]], [[7], [255]]]),
        ("c", [[[1, 2, 3], [255] * 3]]),
    ):
        pixels, remarks = decode_image(str(tmp_path / f"{name}.png"))
        assert pixels.tolist() == expected and remarks == [ON_WHITE]


def deep_png(path, color_type, channels):
    """A PNG of 16 bits, which Pillow cannot write in color."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + bytes(range(2 * channels * 3)) for _ in range(2))
    header = struct.pack(">IIBBBBB", 3, 2, 16, color_type, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks))


def deep_tiff(path, channels, planar=1):
    """An uncompressed TIFF of 16 bits."""
    data = bytes(range(2 * channels * 6))
    plane = len(data) // channels
    strips = [plane] * channels if planar == 2 else [len(data)]
    tags = [(256, 3, [3]), (257, 3, [2]), (258, 3, [16] * channels), (259, 3, [1]), (262, 3, [2])]
    tags += [(273, 4, [8 + i * plane for i in range(len(strips))]), (277, 3, [channels])]
    tags += [(278, 3, [2]), (279, 4, strips), (284, 3, [planar])]
    tags += [(338, 3, [2])] if channels == 4 else []
    extra, entries, place = b"", b"", 8 + len(data) + 2 + 12 * len(tags) + 4
    for tag, kind, values in tags:
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            extra, packed = extra + packed, struct.pack("<I", place + len(extra))
        entries += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory + extra)


@pytest.mark.parametrize(
    ("write", "arguments"),
    [
        (deep_png, (0, 1)),
        (deep_png, (2, 3)),
        (deep_png, (4, 2)),
        (deep_png, (6, 4)),
        (deep_tiff, (3,)),
        (deep_tiff, (4,)),
        (deep_tiff, (3, 2)),
    ],
)
def test_channels_of_16_bits_are_refused(tmp_path, write, arguments):
    path = tmp_path / "a.img"
    write(path, *arguments)
    with Image.open(path) as image:
        image.load()  # a file that Pillow reads
    with pytest.raises(ValueError, match="only 8-bit images are read") as raised:
        decode_image(str(path))
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_deep_color_pnm_is_scaled(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 1023\n" + struct.pack(">3H", 0, 512, 1023))
    pixels, _ = decode_image(str(tmp_path / "a.ppm"))
    assert pixels.tolist() == [[[0, round(512 / 1023 * 255), 255]]]


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("gif", {}), ("tiff", {}), ("webp", {"lossless": True}), ("png", {}), ("mpo", {})],
)
def test_the_first_of_several_frames_is_read(tmp_path, suffix, options):
    frames = [Image.fromarray(np.full((4, 6), value, np.uint8)) for value in (40, 90, 200)]
    for count, expected in ((3, [FIRST_FRAME]), (1, [])):
        path = tmp_path / f"{count}.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:count], **options)
        pixels, remarks = decode_image(str(path))
        assert (pixels == 40).all() and pixels.shape[:2] == (4, 6)
        assert remarks == expected


def test_black_and_white_is_gray(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert decode_image(str(tmp_path / "a.png"))[0].tolist() == [[[255], [0]]]
