"""Image folders: pixels, labels and order, the cache, and bad files."""

import os
import shutil
import struct
import unicodedata
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from normjax.data import load_dataset
from normjax.data.images import FIRST_FRAME, ON_WHITE


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMJAX_CACHE_DIR", str(tmp_path / "cache"))


def write_folder(root, mode="RGB", suffix="png", shape=(4, 6), counts=(3, 2)):
    """Writes 2 classes of random images; returns the pixels by split, in the expected order."""
    rng = np.random.default_rng(0)
    written = {}
    for split, count in zip(("train", "test"), counts, strict=True):
        written[split] = []
        for name in ("apple", "bear"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (*shape, 3) if mode == "RGB" else shape, np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.{suffix}")
                written[split].append(pixels.reshape(*shape, -1))
    return {split: np.stack(pixels) for split, pixels in written.items()}


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_folder_pixels_labels_and_order(tmp_path, mode, channels):
    written = write_folder(tmp_path / "data", mode)
    (tmp_path / "data/train/.hidden").mkdir()
    (tmp_path / "data/train/apple/.DS_Store").write_bytes(b"x")
    data = load_dataset(f"folder:{tmp_path / 'data'}")
    assert data.class_names == ("apple", "bear") and data.image_shape == (4, 6, channels)
    np.testing.assert_array_equal(data.train.images, written["train"])
    np.testing.assert_array_equal(data.test.images, written["test"])
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert data.train.images.dtype == np.uint8 and data.train.labels.dtype == np.int32


def test_one_color_image_makes_all_rgb(tmp_path):
    written = write_folder(tmp_path, "L")
    color = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(color).save(tmp_path / "test/bear/1.png")
    data = load_dataset(f"folder:{tmp_path}")
    assert data.image_shape == (4, 6, 3)
    np.testing.assert_array_equal(data.train.images, np.repeat(written["train"], 3, axis=3))
    np.testing.assert_array_equal(data.test.images[3], color)


def test_folder_is_decoded_once_and_cached_outside_it(tmp_path, monkeypatch):
    written = write_folder(tmp_path / "data")
    before = sorted(tmp_path.glob("data/**/*"))
    load_dataset(f"folder:{tmp_path / 'data'}")
    assert sorted(tmp_path.glob("data/**/*")) == before
    (cached,) = (tmp_path / "cache").iterdir()  # one file, and no temporary ones
    assert cached.suffix == ".npz"
    assert cached.stat().st_size > sum(pixels.nbytes for pixels in written.values())

    monkeypatch.setattr("PIL.Image.open", None)  # a second decoding would fail
    again = load_dataset(f"folder:{tmp_path / 'data'}")
    np.testing.assert_array_equal(again.train.images, written["train"])


def test_changed_file_of_the_same_size_and_time_is_decoded_again(tmp_path):
    write_folder(tmp_path / "data", suffix="bmp")
    load_dataset(f"folder:{tmp_path / 'data'}")
    path = tmp_path / "data/train/apple/0.bmp"
    before = path.stat()
    pixels = np.full((4, 6, 3), 7, np.uint8)
    Image.fromarray(pixels).save(path)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = load_dataset(f"folder:{tmp_path / 'data'}")
    np.testing.assert_array_equal(again.train.images[0], pixels)


def test_exchanged_files_are_decoded_again(tmp_path):
    written = write_folder(tmp_path / "data", suffix="bmp")
    load_dataset(f"folder:{tmp_path / 'data'}")
    one, other = tmp_path / "data/train/apple/0.bmp", tmp_path / "data/test/bear/1.bmp"
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    again = load_dataset(f"folder:{tmp_path / 'data'}")
    np.testing.assert_array_equal(again.train.images[0], written["test"][3])
    np.testing.assert_array_equal(again.test.images[3], written["train"][0])


def test_a_folder_that_was_copied_is_not_decoded_again(tmp_path, monkeypatch):
    written = write_folder(tmp_path / "data")
    load_dataset(f"folder:{tmp_path / 'data'}")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    monkeypatch.setattr("PIL.Image.open", None)
    again = load_dataset(f"folder:{tmp_path / 'copy'}")
    np.testing.assert_array_equal(again.train.images, written["train"])


def test_what_was_not_read_is_said_once_each_time(tmp_path):
    """A remark for all images together, which the cache keeps."""
    write_folder(tmp_path)
    clear = Image.new("RGBA", (6, 4), (0, 0, 255, 0))
    for place in ("train/apple/1.png", "train/bear/0.png", "test/apple/0.png"):
        clear.save(tmp_path / place)
    clear.save(tmp_path / "test/bear/1.png", save_all=True, append_images=[Image.new("1", (6, 4))])
    for _ in range(2):
        with pytest.warns(UserWarning) as warned:
            data = load_dataset(f"folder:{tmp_path}")
        assert sorted(str(warning.message) for warning in warned) == [
            f"{tmp_path}: 1 of 10 images, such as test/bear/1.png, {FIRST_FRAME}",
            f"{tmp_path}: 4 of 10 images, such as train/apple/1.png, {ON_WHITE}",
        ]
        assert (data.test.images[3] == 255).all()


def test_names_are_compared_in_one_unicode_form(tmp_path):
    """Sorted too, so that a copy from another system has the same order."""
    write_folder(tmp_path)
    for split, form in (("train", "NFD"), ("test", "NFC")):
        for name, new in (("apple", "Zoë"), ("bear", "Å")):
            (tmp_path / split / name).rename(tmp_path / split / unicodedata.normalize(form, new))
    data = load_dataset(f"folder:{tmp_path}")
    assert data.class_names == ("Zoë", "Å")
    (tmp_path / "test" / unicodedata.normalize("NFD", "Å")).mkdir()
    with pytest.raises(ValueError, match="test has two folders Å, written in two Unicode normal"):
        load_dataset(f"folder:{tmp_path}")


def test_xdg_cache_home_and_unwritable_cache(tmp_path, monkeypatch):
    written = write_folder(tmp_path / "data")
    monkeypatch.delenv("NORMJAX_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_dataset(f"folder:{tmp_path / 'data'}")
    assert len(list((tmp_path / "xdg/normjax").iterdir())) == 1
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be cached"):
        data = load_dataset(f"folder:{tmp_path / 'data'}")
    np.testing.assert_array_equal(data.test.images, written["test"])


def damage_truncate(content):
    return content[: len(content) // 2]


def damage_flip(content):
    position = content.index(b"train_images.npy") + 300  # among the pixels
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def damage_count(content):
    """A header that claims fewer images, after which zip never comes to its checksum."""
    assert content.count(b"(6, 4, 6, 3)") == 1
    return content.replace(b"(6, 4, 6, 3)", b"(5, 4, 6, 3)")


@pytest.mark.parametrize(
    "damage", [damage_truncate, damage_flip, damage_count, lambda content: b""]
)
def test_damaged_cache_is_rebuilt_with_a_warning(tmp_path, damage):
    written = write_folder(tmp_path / "data")
    load_dataset(f"folder:{tmp_path / 'data'}")
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_bytes(damage(cached.read_bytes()))
    with pytest.warns(UserWarning, match=r"damaged and will be rebuilt"):
        data = load_dataset(f"folder:{tmp_path / 'data'}")
    np.testing.assert_array_equal(data.train.images, written["train"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset(f"folder:{tmp_path / 'data'}")


def break_no_train(root):
    (root / "train").rename(root / "training")


def break_no_test(root):
    (root / "test").rename(root / "testing")


def break_no_classes(root):
    for name in ("apple", "bear"):
        (root / "train" / name).rename(root / f"moved-{name}")


def break_empty_class(root):
    for path in (root / "train/bear").iterdir():
        path.unlink()


def break_classes(root):
    (root / "test/bear").rename(root / "test/wolf")


def break_image(root):
    (root / "train/bear/1.png").write_bytes(b"not an image")


def break_truncated(root):
    path = root / "train/bear/1.png"
    path.write_bytes(path.read_bytes()[:-30])


def break_shape(root):
    Image.new("RGB", (9, 5)).save(root / "train/bear/1.png")


def break_huge(root):
    Image.new("RGB", (1025, 3)).save(root / "train/bear/1.png")


def break_bomb(root):
    Image.new("1", (20000, 10000)).save(root / "train/bear/1.png")  # 200 million pixels


def break_warning(root):
    Image.new("1", (12000, 10000)).save(root / "train/bear/1.png")  # Pillow would only warn


def break_depth(root):
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(root / "train/bear/1.png")


def break_nested(root):
    (root / "train/bear/more").mkdir()


def break_link(root):
    (root / "test/bear/2.png").symlink_to(root / "gone.png")


def break_loop(root):
    (root / "test/bear/2.png").symlink_to("2.png")


def break_class_link(root):
    (root / "train/cow").symlink_to("/no/such/folder")


def break_format(root):
    # A PostScript file, which Pillow would hand to an interpreter.
    Image.new("RGB", (6, 4)).save(root / "train/bear/1.png", format="EPS")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_no_train, r"no train/ folder"),
        (break_no_test, r"no test/ folder"),
        (break_no_classes, r"no images: .*train has no class folders"),
        (break_empty_class, r"train/bear is empty"),
        (break_classes, r"same classes; only one of them has bear, wolf"),
        (break_image, r"train/bear/1\.png is not a readable image"),
        (break_truncated, r"train/bear/1\.png is a damaged image"),
        (break_shape, r"train/bear/1\.png is 5x9 pixels, but the first image, .*0\.png, is 4x6"),
        (break_huge, r"train/bear/1\.png is 3x1025 pixels; allowed is up to 1024"),
        (break_bomb, r"train/bear/1\.png is too large an image; allowed is up to 1024 a side"),
        (break_warning, r"train/bear/1\.png is too large an image; allowed is up to 1024 a side"),
        (break_depth, r"train/bear/1\.png has pixels of mode I;16"),
        (break_nested, r"train/bear/more is not a file"),
        (break_link, r"test/bear/2\.png is a broken link"),
        (break_loop, r"test/bear/2\.png is a broken link"),
        (break_class_link, r"train/cow is a broken link"),
        (break_format, r"train/bear/1\.png is not a readable image"),
    ],
)
def test_bad_folder_is_one_clear_line(tmp_path, damage, message):
    write_folder(tmp_path / "data")
    damage(tmp_path / "data")
    with pytest.raises(ValueError, match=message) as raised:
        load_dataset(f"folder:{tmp_path / 'data'}")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "cache").exists()


def big_png(content, side):
    chunk = b"IHDR" + struct.pack(">II", side, side) + content[24:29]
    return content[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]


def big_jpeg(content, side):
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", side, side) + content[place + 4 :]


def big_tiff(content, side):
    for tag in (256, 257):  # width and height
        place = content.index(struct.pack("<HHI", tag, 4, 1)) + 8
        content = content[:place] + struct.pack("<I", side) + content[place + 4 :]
    return content


BIG = {
    "PNG": big_png,
    "JPEG": big_jpeg,
    "TIFF": big_tiff,
    "BMP": lambda content, side: content[:18] + struct.pack("<ii", side, side) + content[26:],
    "GIF": lambda content, side: content[:6] + struct.pack("<HH", side, side) + content[10:],
    "PPM": lambda content, side: b"P6 %d %d 255\n" % (side, side) + bytes(72),
}


@pytest.mark.parametrize("side", [60_000, 12_000, 2_000])
@pytest.mark.parametrize("kind", BIG)
def test_absurd_size_is_refused_before_anything_is_decoded(tmp_path, monkeypatch, kind, side):
    written = write_folder(tmp_path / "data")
    path = tmp_path / "data/train/apple/0.png"  # the first that is opened
    image = Image.fromarray(written["train"][0])
    image.save(path, format=kind)
    path.write_bytes(BIG[kind](path.read_bytes(), side))
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    with pytest.raises(ValueError, match="allowed is up to 1024 a side") as raised:
        load_dataset(f"folder:{tmp_path / 'data'}")
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.skipif(
    "NORMJAX_CIFAR10_DIR" not in os.environ,
    reason="NORMJAX_CIFAR10_DIR does not name a folder with CIFAR-10's images as files",
)
def test_real_cifar10_folder():
    data = load_dataset(f"folder:{os.environ['NORMJAX_CIFAR10_DIR']}", test_size=100)
    assert data.image_shape == (32, 32, 3) and data.class_names[:2] == ("airplane", "automobile")
    assert np.bincount(data.train.labels).tolist() == [5000] * 10
    assert len(data.test.labels) == 100
    # The channel means that are quoted for CIFAR-10's training images (0.4914, 0.4822, 0.4465).
    np.testing.assert_allclose(
        data.train.images.mean((0, 1, 2)) / 255, (0.4914, 0.4822, 0.4465), rtol=0, atol=2e-3
    )
