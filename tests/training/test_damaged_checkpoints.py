"""Checkpoints with random damage: the one before, or a line that says so; never wrong numbers."""

import json
import shutil

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from normjax.networks.classifier import leaf_shapes
from normjax.training import checkpoints
from normjax.training.ensemble import Member, take_member
from normjax.training.saved import load_member, save_network
from tests.helpers.classifiers import classifier_of

# Where orbax can't write or read, it raises in its own threads beside the one that waits for it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


def damage(path, place, change):
    """A file with other bytes: what stands there is replaced by `change`, by a cut, or by none."""
    content = bytearray(path.read_bytes())
    if change is None:
        path.unlink()
    elif change == b"":
        path.write_bytes(content[: int(place * len(content))])
    else:
        start = int(place * len(content))
        content[start : start + len(change)] = change
        path.write_bytes(content)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


DAMAGE = {
    "which": st.floats(0, 1, exclude_max=True),
    "place": st.floats(0, 1, exclude_max=True),
    "change": st.none() | st.binary(max_size=40),
}
FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def random_tree(seed):
    """Three networks that don't compress: their bytes stand in a file as they are."""
    rng = np.random.default_rng(seed)
    return {"params": {"Dense_0": {"kernel": rng.normal(size=(3, 20, 10)).astype(np.float32)}}}


def is_same(ours, theirs):
    return jax.tree.structure(ours) == jax.tree.structure(theirs) and all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of epochs 1 and 2, and finished networks."""
    folder = tmp_path_factory.mktemp("saved")
    with checkpoints.open_progress(folder, 0) as checkpointer:
        for epoch in (1, 2):
            checkpoints.save_progress(checkpointer, epoch, as_jax(random_tree(epoch)), [0, 1, 2])
    members = [Member(index, index, "pretrain", 0.5) for index in range(3)]
    for member in members:
        save_network(folder, 0, member, "final", take_member(random_tree(3), member.index))
    shapes = leaf_shapes(classifier_of("linear", (5, 4, 1)))
    run = {"model": "linear", "num_classes": 10, "groups": [[0, 1, 2]], "given": []}
    run |= {"image_shape": [5, 4, 1], "parameters": shapes, "seed": 0, "finished": False}
    run["config"] = {"workdir": "w", "model": "linear"}
    run["members"] = [member._asdict() for member in members]
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def as_jax(tree):
    return jax.tree.map(jax.numpy.asarray, tree)


@FUZZ
@given(**DAMAGE)
@example(which=0.0, place=0.03125, change=b" ")  # on which orbax itself fails
def test_a_damaged_checkpoint_gives_way_and_never_wrong_numbers(
    saved, tmp_path, capfd, which, place, change
):
    folder = fresh_copy(saved, tmp_path)
    files = files_of(folder / "checkpoints" / "progress" / "000" / "2")
    damage(files[int(which * len(files))], place, change)
    with checkpoints.open_progress(folder, 0) as checkpointer:
        start = as_jax(random_tree(0))
        state, epoch = checkpoints.restore_progress(checkpointer, start, [0, 1, 2])
    assert epoch in (1, 2) and is_same(state, random_tree(epoch))
    lines = [x for x in capfd.readouterr().err.splitlines() if x.startswith("checkpoint of epoch")]
    assert len(lines) == (epoch == 1)


@FUZZ
@given(**DAMAGE)
def test_damaged_networks_are_refused(saved, tmp_path, which, place, change):
    folder = fresh_copy(saved, tmp_path)
    files = files_of(folder / "checkpoints" / "members")
    path = files[int(which * len(files))]
    damage(path, place, change)
    try:
        networks = [load_member(folder, member)[1] for member in range(3)]
    except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error) and str(folder) in str(error)
        return
    kernels = np.stack([network["params"]["Dense_0"]["kernel"] for network in networks])
    np.testing.assert_array_equal(kernels, random_tree(3)["params"]["Dense_0"]["kernel"])


def fresh_copy(saved, tmp_path):
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    return shutil.copytree(saved, tmp_path / "copy")


def test_one_flipped_bit_is_found(saved, tmp_path, capsys):
    """Orbax alone reads these bytes as they are."""
    folder = fresh_copy(saved, tmp_path)
    files = files_of(folder / "checkpoints" / "progress" / "000" / "2")
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with checkpoints.open_progress(folder, 0) as checkpointer:
        state, epoch = checkpoints.restore_progress(checkpointer, as_jax(random_tree(0)), [0, 1, 2])
    assert epoch == 1 and is_same(state, random_tree(1))
    assert capsys.readouterr().err == (
        "checkpoint of epoch 2 cannot be read: it is damaged: its SHA-256 has changed\n"
    )
