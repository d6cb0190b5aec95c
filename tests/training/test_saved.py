"""Networks and rows of finished groups, as they are saved and loaded."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from normjax.networks.classifier import leaf_shapes, make_classifier
from normjax.results.table import write_results
from normjax.training.ensemble import Member, take_member
from normjax.training.saved import (
    identity,
    load_member,
    network_path,
    read_arrays,
    save_network,
    save_rows,
)
from tests.helpers.classifiers import classifier_of
from tests.helpers.synthetic_results import synthetic_table

IMAGE_SHAPE = (8, 8, 1)


def random_variables(classifier, seed=0):
    """Variables of the right shapes, positive as variances must be."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype), classifier.shapes
    )


def linear_variables(seed=0):
    return random_variables(classifier_of("linear"), seed)


def member_of(number, seed=0):
    """One of a run's networks."""
    return Member(number, seed, "pretrain", 0.5)


def save(run_dir, number, selection, variables, run_seed=0):
    """Save a network of a run."""
    save_network(run_dir, run_seed, member_of(number), selection, variables)


def write_record(run_dir, model, groups, classifier=None, **changes):
    """The run.json of a run, of a network of the paper or of one's own."""
    run_dir.mkdir(exist_ok=True)
    run = {"model": model, "num_classes": 10, "groups": groups}
    members = [member_of(number)._asdict() for number in range(sum(map(len, groups)))]
    run |= {"image_shape": IMAGE_SHAPE, "members": members, "seed": 0, "finished": False}
    run |= {"given": [] if classifier is None else ["model"]}
    run["config"] = {"workdir": "w", "model": model}
    run["parameters"] = leaf_shapes(classifier or classifier_of(model))
    (run_dir / "run.json").write_text(json.dumps(run | changes))


def test_members_come_back_as_they_were_saved(tmp_path):
    write_record(tmp_path, "linear", [[0, 1], [2]])
    trained = {
        (member, selection): linear_variables(seed)
        for seed, (member, selection) in enumerate(
            (member, selection) for member in range(3) for selection in ("final", "loss=0.05")
        )
    }
    for (member, selection), variables in trained.items():
        save(tmp_path, member, selection, variables)
    images = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, *IMAGE_SHAPE)
    for (member, selection), variables in trained.items():
        model, loaded = load_member(tmp_path, member, selection)
        kernel, saved = (v["params"]["Dense_0"]["kernel"] for v in (loaded, variables))
        assert isinstance(kernel, np.ndarray) and kernel.dtype == np.float32
        np.testing.assert_array_equal(kernel, saved)
        np.testing.assert_allclose(
            model.apply(loaded, images), images.reshape(2, -1) @ saved, rtol=1e-4, atol=1e-4
        )
        # numpy alone reads the file, too.
        with np.load(network_path(tmp_path, member, selection)) as arrays:
            np.testing.assert_array_equal(arrays["Dense_0/kernel"], saved)


def test_one_network_is_read_alone(tmp_path):
    """Damage to every other file of the run leaves it."""
    write_record(tmp_path, "linear", [[0, 1]])
    for member in (0, 1):
        for selection in ("final", "loss=0.05"):
            save(tmp_path, member, selection, linear_variables())
    for path in (tmp_path / "checkpoints").rglob("*.npz"):
        if path != network_path(tmp_path, 1, "final"):
            path.write_bytes(b"")
    assert load_member(tmp_path, 1)[1]["params"]
    with pytest.raises(ValueError, match="damaged"):
        load_member(tmp_path, 0)


def test_equal_networks_make_equal_bytes(tmp_path):
    for folder in ("a", "b"):
        save(tmp_path / folder, 0, "final", random_variables(classifier_of("convnet3")))
    ours, theirs = (network_path(tmp_path / folder, 0, "final") for folder in ("a", "b"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_loaded_member_has_its_statistics(tmp_path):
    classifier = classifier_of("convnet5", batch_norm=True)
    config = {"workdir": "w", "model": "convnet5", "batch_norm": True}
    shapes = leaf_shapes(classifier)
    write_record(tmp_path, "convnet5", [[0, 1]], config=config, parameters=shapes)
    stacked = [random_variables(classifier, seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *stacked)
    for member in (0, 1):
        save(tmp_path, member, "final", take_member(stacked, member))
    model, loaded = load_member(tmp_path, 1)
    assert loaded.keys() == {"params", "batch_stats"}
    expected = jax.tree.map(lambda x: x[1], stacked)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    images = np.ones((2, *IMAGE_SHAPE), np.float32)
    np.testing.assert_array_equal(
        model.apply(loaded, images), classifier.module.apply(expected, images)
    )


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no run here \(run.json is missing\)"):
        load_member(tmp_path / "nowhere", 0)
    # Member 1 never came near its target, member 2 is not trained yet.
    write_record(tmp_path, "linear", [[0, 1], [2]])
    for member, selection in ((0, "final"), (0, "loss=0.05"), (1, "final")):
        save(tmp_path, member, selection, linear_variables())
    for member in (3, -1):
        with pytest.raises(ValueError, match=f"no member {member}; there are 0 to 2"):
            load_member(tmp_path, member)
    with pytest.raises(FileNotFoundError, match="member 2 is not fully trained yet"):
        load_member(tmp_path, 2)
    with pytest.raises(TypeError, match="integer"):
        load_member(tmp_path, 1.0)
    table = synthetic_table((0.5,), 2, ("2",), ("final", "loss=0.05"))
    save_rows(tmp_path, 0, table[(table["member"] == 0) | (table["selection"] == "final")])
    for member, selection, known in ((0, "best", "final, loss=0.05"), (1, "loss=0.05", "final")):
        message = f"member {member} has no network '{selection}'; it has: {known}$"
        with pytest.raises(ValueError, match=message):
            load_member(tmp_path, member, selection)
    path = network_path(tmp_path, 0, "loss=0.05")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path}: the file of a trained network is miss"):
        load_member(tmp_path, 0, "loss=0.05")


def test_a_file_of_a_finished_run_is_missing(tmp_path):
    write_record(tmp_path, "linear", [[0, 1]], finished=True)
    write_results(tmp_path / "results.csv", synthetic_table((0.5,), 2, ("2",)))
    with pytest.raises(FileNotFoundError, match=r"001_final.npz: the file of a trained network"):
        load_member(tmp_path, 1)


def test_a_file_of_another_network_is_refused(tmp_path):
    """Of another member, of another selection, and of a run with another seed."""
    write_record(tmp_path, "linear", [[0, 1]])
    for number, selection in ((0, "final"), (0, "loss=0.05"), (1, "final")):
        save(tmp_path, number, selection, linear_variables())
    path = network_path(tmp_path, 1, "final")
    whole = path.read_bytes()
    for selection in ("final", "loss=0.05"):
        path.write_bytes(network_path(tmp_path, 0, selection).read_bytes())
        message = f'{path}: damaged or renamed, it holds .*index": 0.*{selection}.*, not .*": 1,'
        with pytest.raises(ValueError, match=message):
            load_member(tmp_path, 1)
    save(tmp_path, 1, "final", linear_variables(), run_seed=3)
    with pytest.raises(ValueError, match="damaged or renamed"):
        load_member(tmp_path, 1)
    path.write_bytes(whole)
    assert load_member(tmp_path, 1)[1]["params"]


class Narrow(nn.Module):
    """A network of the user's own."""

    features: int

    @nn.compact
    def __call__(self, images):
        """Flatten, and two dense layers."""
        x = nn.relu(nn.Dense(self.features, use_bias=False)(images.reshape(len(images), -1)))
        return nn.Dense(10, use_bias=False)(x)


def test_an_own_network_must_be_given_again(tmp_path):
    classifier = make_classifier(Narrow(3), IMAGE_SHAPE, 10)
    write_record(tmp_path, "Narrow", [[0]], classifier)
    variables = random_variables(classifier)
    save(tmp_path, 0, "final", variables)
    model, loaded = load_member(tmp_path, 0, model=Narrow(3))
    assert model.module == Narrow(3)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    with pytest.raises(ValueError, match=r"run.json: the run used your network Narrow: pass"):
        load_member(tmp_path, 0)
    with pytest.raises(ValueError, match=r"run.json: the network's variables differ"):
        load_member(tmp_path, 0, model=Narrow(4))
    write_record(tmp_path, "linear", [[0]])
    with pytest.raises(ValueError, match=r"the run's network is linear: do not pass another"):
        load_member(tmp_path, 0, model=Narrow(3))


class Tiny(nn.Module):
    """A network with two small arrays."""

    @nn.compact
    def __call__(self, images):
        """Two of the pixels, and a dense layer."""
        return nn.Dense(10)(images.reshape(len(images), -1)[:, :2])


def test_flipped_bits_are_refused_or_harmless(tmp_path):
    """Every third bit: of the zip's own fields, of the arrays and of their headers."""
    classifier = make_classifier(Tiny(), IMAGE_SHAPE, 10)
    write_record(tmp_path, "Tiny", [[0]], classifier)
    variables = random_variables(classifier)
    save(tmp_path, 0, "final", variables)
    path = network_path(tmp_path, 0, "final")
    whole = path.read_bytes()
    expected = {f"Dense_0/{name}": x for name, x in variables["params"]["Dense_0"].items()}
    refused = 0
    for bit in range(0, 8 * len(whole), 3):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            arrays = read_arrays(path, identity(0, member_of(0)._asdict(), "final"))
            if arrays.keys() != expected.keys():  # a flip in the list of arrays can hide one
                load_member(tmp_path, 0, model=Tiny())
        except ValueError as error:
            assert str(error).startswith(f"{path}: damaged") and "\n" not in str(error)
            refused += 1
            continue
        assert arrays.keys() == expected.keys()
        for name, array in arrays.items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, expected[name])
    assert refused > len(whole)
