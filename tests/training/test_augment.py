"""Flips and shifts of training images: what they are, how often, and in which phase."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax
from normjax.plots import paper as plotting
from normjax.results.table import FLOAT_COLUMNS, read_results
from normjax.training import phases
from normjax.training.augment import augment_images
from normjax.training.step import Metrics, make_train_epoch
from tests.helpers import commands

AUGMENT = jax.jit(augment_images)
KEY = jax.random.key(7)
RUN = (
    "--train_size=60",
    "--test_size=40",
    "--model=linear",
    "--corruption_levels=1",
    "--pretrain_epochs=2",
    "--epochs=4",
    "--batch_size=24",
    "--learning_rate=0.1",
    "--norms=2",
    "--checkpoint_every=1",
)


def draw_images(num, height, width, channels=1, seed=0):
    """Random images without black pixels, so that no two flips or shifts are equal."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, 256, (num, height, width, channels)).astype(np.uint8)


def all_versions(image, down, right):
    """{(flipped, rows down, columns right): image}, by slices of NumPy."""
    height, width = image.shape[:2]
    frame = np.pad(image, ((down, down), (right, right), (0, 0)))
    found = {}
    for flip in (False, True):
        source = frame[:, ::-1] if flip else frame
        for y in range(-down, down + 1):
            for x in range(-right, right + 1):
                rows, columns = slice(down - y, down - y + height), slice(right - x, None)
                found[flip, y, x] = source[rows, columns][:, :width]
    return found


def version_of(augmented, versions):
    (found,) = [name for name, image in versions.items() if np.array_equal(image, augmented)]
    return found


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (9, 24, 2)])
def test_images_are_flipped_and_shifted_and_nothing_else(shape):
    images = draw_images(40, *shape)
    augmented = np.asarray(AUGMENT(images, KEY))
    assert augmented.shape == images.shape and augmented.dtype == np.uint8
    found = {
        version_of(new, all_versions(old, shape[0] // 8, shape[1] // 8))
        for old, new in zip(images, augmented, strict=True)
    }
    assert len(found) > 5  # each image has a draw of its own


def test_each_flip_and_shift_is_as_frequent_as_the_others():
    """One image 9,000 times: 18 versions of equal probability."""
    image = draw_images(1, 8, 8)[0]
    versions = all_versions(image, 1, 1)
    augmented = np.asarray(AUGMENT(np.repeat(image[None], 9000, axis=0), KEY))
    counts = [np.sum((augmented == version).all((1, 2, 3))) for version in versions.values()]
    assert sum(counts) == 9000 and len(counts) == 18
    assert np.abs(np.array(counts) - 500).max() < 5 * np.sqrt(500)


def test_draws_come_from_the_key():
    images = draw_images(50, 8, 8)
    first, again, other = (
        np.asarray(AUGMENT(images, key)) for key in (KEY, jax.random.key(7), jax.random.key(8))
    )
    np.testing.assert_array_equal(first, again)
    assert np.mean((first == other).all((1, 2, 3))) < 0.3


def test_every_batch_of_every_epoch_is_drawn_anew():
    """The same image at each place of an epoch: its versions differ in batches and epochs."""
    images = np.repeat(draw_images(1, 8, 8), 64, axis=0)

    def record(state, batch, _):
        position, seen = state
        seen = jax.lax.dynamic_update_slice(seen, batch.images, (position, 0, 0, 0))
        return (position + 16, seen), Metrics(*jnp.zeros(4))

    for augment, num_versions in ((True, 18), (False, 1)):
        epoch = jax.jit(make_train_epoch(record, 16, augment=augment))
        first, second = (
            np.asarray(
                epoch((0, jnp.zeros_like(images)), images, np.zeros(64, np.int32), key)[0][1]
            )
            for key in jax.random.split(KEY)
        )
        assert len(np.unique(first, axis=0)) >= 0.8 * num_versions
        batches = [*np.split(first, 4), *np.split(second, 4)]
        num_different = len({batch.tobytes() for batch in batches})
        assert num_different == (8 if augment else 1)


@pytest.fixture(scope="module")
def regularized(invoke, tmp_path_factory):
    """A run with weight decay and augmentation, and the same run without them."""
    folder = tmp_path_factory.mktemp("augment")
    invoke(*RUN, "--augment", "--weight_decay=0.01", f"--workdir={folder / 'both'}")
    invoke(*RUN, f"--workdir={folder / 'plain'}")
    return folder


def test_the_first_phase_is_without_both(regularized):
    lines = {
        name: [
            line
            for line in (regularized / name / "metrics.jsonl").read_text().splitlines()
            if '"phase": "pretrain"' in line
        ]
        for name in ("both", "plain")
    }
    assert lines["both"] == lines["plain"] and len(lines["both"]) == 2
    assert_differ(*(read_results(regularized / name) for name in ("both", "plain")))


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--augment", "--weight_decay=0.01"])
def test_each_has_an_effect_of_its_own(flag, regularized, invoke, tmp_path):
    invoke(*RUN, flag, f"--workdir={tmp_path / 'run'}")
    alone = read_results(tmp_path / "run")
    for name in ("both", "plain"):
        assert_differ(alone, read_results(regularized / name))


def assert_differ(one, other):
    names = ["product_norm", "train_loss", "normalized_test_excess"]
    assert (np.abs(one[names] / other[names] - 1) > 1e-5).all(axis=None)
    assert set(names) < set(FLOAT_COLUMNS)


def test_a_resumed_run_draws_the_same(regularized, invoke, tmp_path, monkeypatch):
    """Stopped in the middle of the second phase, by the signal that a scheduler sends."""
    calls = []
    original = phases.metrics.append_metrics
    monkeypatch.setattr(
        phases.metrics, "append_metrics", lambda *args: (calls.append(args), original(*args))
    )
    both = ("--augment", "--weight_decay=0.01")
    stop = phases.processes.all_max
    monkeypatch.setattr(
        phases.processes, "all_max", lambda value: 15 if len(calls) == 4 else stop(value)
    )
    with pytest.raises(SystemExit) as stopped:
        invoke(*RUN, *both, f"--workdir={tmp_path / 'run'}")
    assert stopped.value.code == 143
    calls.append(None)
    message = commands.error_of(invoke, *RUN, f"--workdir={tmp_path / 'run'}", "--resume")
    assert "has a different --weight_decay, --augment" in message
    invoke(*RUN, *both, f"--workdir={tmp_path / 'run'}", "--resume")
    resumed, whole = (path / "results.csv" for path in (tmp_path / "run", regularized / "both"))
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_targets_are_measured_on_the_images_as_they_are(regularized, invoke, tmp_path):
    """Every epoch, because the running metrics are of other images."""
    plain = (regularized / "both" / "metrics.jsonl").read_text().splitlines()
    assert sum('"train_loss": null' in line for line in plain if '"phase": "train"' in line) == 3
    invoke(*RUN, "--augment", "--target_losses=0.5", f"--workdir={tmp_path / 'run'}")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert not any('"train_loss": null' in line for line in lines if '"phase": "train"' in line)


def test_tiny_images_can_not_be_augmented(tmp_path, monkeypatch):
    monkeypatch.setattr(plotting, "draw_figures", lambda *_: [])
    labels = np.arange(20) % 2
    data = (draw_images(20, 8, 7), labels), (draw_images(20, 8, 7, seed=1), labels)
    config = normjax.SweepConfig(tmp_path / "run", model="linear", batch_size=10, augment=True)
    with pytest.raises(ValueError, match=r"^--augment=true: images of at least 8 x 8 pixels"):
        normjax.run_sweep(config, dataset=data)
