"""Sampled, mixed and augmented images, against other libraries."""

import dataclasses

import numpy as np
import pytest
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from scipy.special import softmax

from normjax.generalization import augmentations, sample
from normjax.generalization.sample import Sample
from tests.helpers.trained_networks import trained_convnet3, trained_mlp


def colored(shape=(5, 12, 10, 3), seed=0):
    """Random images, some of them gray, as a sample."""
    pixels = np.random.default_rng(seed).uniform(size=shape).astype(np.float32)
    pixels[0, :3] = pixels[0, :3, :, :1]
    return Sample(2 * pixels - 1, np.arange(len(pixels)) % 2, seed), pixels


def test_a_sample_is_the_same_for_all_networks_of_a_seed():
    images = np.random.default_rng(1).integers(0, 256, (30, 4, 4, 3)).astype(np.uint8)
    labels = np.arange(30)
    drawn = sample.draw_sample(images, labels, 12, seed=5)
    again = sample.draw_sample(images, 100 + labels, 12, seed=5)
    assert len(set(drawn.labels)) == 12 and (again.labels == 100 + drawn.labels).all()
    np.testing.assert_allclose(drawn.x, images[drawn.labels] / 127.5 - 1, atol=1e-6)
    assert len(sample.draw_sample(images, labels, 99, seed=5).labels) == 30
    assert (sample.draw_sample(images, labels, 12, seed=6).labels != drawn.labels).any()


def test_mixed_images_are_means_of_two_of_one_class():
    x = np.arange(9, dtype=np.float32)[:, None] ** 2
    labels = np.array([0, 1, 0, 1, 0, 2, 1, 0, 0])
    mixed = sample.mix_within_classes(Sample(x, labels, 0))
    assert len(mixed.x) == 8 and 2 not in mixed.labels  # the only 2 has no partner
    for label in (0, 1):
        own = x[labels == label, 0]
        pairs = {(a + b) / 2 for i, a in enumerate(own) for b in own[:i]}
        found = mixed.x[mixed.labels == label, 0].tolist()
        assert set(found) <= pairs
        assert np.sum(found) == pytest.approx(own.sum())  # each image is in two means
    assert len(sample.mix_within_classes(Sample(x[:2], labels[:2], 0)).x) == 0


def test_augmentations_against_other_libraries():
    torch = pytest.importorskip("torch")
    drawn, pixels = colored()
    found = {name: (x + 1) / 2 for name, x in sample.augment(drawn).items()}
    assert set(found) == set(augmentations.PENALTIES)
    assert {name: x.shape for name, x in found.items()} == dict.fromkeys(found, pixels.shape)
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(found["flip"], np.flip(pixels, 2), **close)
    np.testing.assert_allclose(found["brightness"], pixels + 0.5, **close)
    rng = np.random.default_rng(drawn.seed)
    for name, image in (("saturation", pixels), ("flip_saturation", np.flip(pixels, 2))):
        hsv = rgb_to_hsv(image.astype(np.float64))
        hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.6, 1.6), 0, 1)
        np.testing.assert_allclose(found[name], hsv_to_rgb(hsv), **close)
    channels = torch.tensor(pixels).permute(0, 3, 1, 2)
    # 90% of 30 and 40 is 27 and 36: one and two pixels less at each side.
    large, large_pixels = colored((2, 30, 40, 3))
    cut = torch.tensor(large_pixels).permute(0, 3, 1, 2)[:, :, 1:29, 2:38]
    resized = torch.nn.functional.interpolate(cut, (30, 40), mode="bilinear", align_corners=False)
    crop = (sample.augment(large)["crop"] + 1) / 2
    np.testing.assert_allclose(crop, resized.permute(0, 2, 3, 1), **close)
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])[None, None].repeat(3, 1, 1, 1)
    padded = torch.nn.functional.pad(channels, (1, 1, 1, 1), mode="reflect")
    edges = torch.nn.functional.conv2d(padded, kernel, groups=3) / 4 + 0.5
    np.testing.assert_allclose(found["edges"], edges.permute(0, 2, 3, 1), **close)


def test_erased_rectangles():
    """Black within a rectangle, unchanged elsewhere."""
    drawn, pixels = colored((40, 16, 16, 3))
    erased = (sample.augment(drawn)["erasure"] + 1) / 2
    areas = []
    for before, after in zip(pixels, erased, strict=True):
        black = np.all(np.abs(after) < 1e-6, axis=-1)
        rows, columns = np.flatnonzero(black.any(1)), np.flatnonzero(black.any(0))
        assert black[np.ix_(rows, columns)].all() and len(rows) == np.ptp(rows) + 1
        np.testing.assert_allclose(after[~black], before[~black], atol=1e-6)
        areas.append(black.sum())
    assert min(areas) >= 1 and len(set(areas)) > 10


def test_gray_images_have_no_saturation():
    drawn, pixels = colored((3, 8, 8, 1))
    found = sample.augment(drawn)
    np.testing.assert_allclose((found["saturation"] + 1) / 2, pixels, atol=1e-6)


def test_the_penalty_by_a_loop_over_images():
    network = trained_convnet3(num_examples=20)
    images = np.clip(network.sample.x / 3, -1, 1)
    network = dataclasses.replace(network, sample=network.sample._replace(x=images))

    def predict(x):
        p = softmax(np.asarray(network.apply_fn(network.params, x), np.float64), axis=1)
        return p.argmax(1), p.max(1)

    plain, total, changed = predict(images), 0.0, 0
    for name, x in sample.augment(network.sample).items():
        for own, other, p, q in zip(plain[0], predict(x)[0], plain[1], predict(x)[1], strict=True):
            total += abs(p - q) if own == other else augmentations.PENALTIES[name]
            changed += own != other
    assert 0 < changed < 140
    value = augmentations.augmentation_penalty(network)
    assert value == pytest.approx(total / 20, rel=1e-4)
    assert np.isnan(augmentations.augmentation_penalty(trained_mlp()))
