"""Several devices train one network, each on a part of every batch."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

from normjax.results import metrics
from normjax.training.ensemble import (
    PART,
    Member,
    make_ensemble,
    make_order_key,
    member_mesh,
    pad_members,
    shard_members,
    share,
    take_member,
)
from normjax.training.plan import divide_batches
from normjax.training.step import Metrics, TrainState, make_train_epoch
from tests.helpers.classifiers import classifier_of

SHAPE = (12, 12, 3)
NETWORKS = {"convnet3": False, "convnet5": True, "linear": False}  # name: batch normalization

pytestmark = pytest.mark.slow
needs_two_devices = pytest.mark.skipif(
    jax.local_device_count() != 2, reason="two devices share each batch"
)


def train(name, devices_per_network, *, batch_size=18, augment=False, num_members=1):
    """Two epochs on 40 images: each member's state and metrics."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, *SHAPE), np.uint8)
    classifier = classifier_of(name, SHAPE, batch_norm=NETWORKS[name])
    if devices_per_network > 1:
        classifier = divide_batches(classifier, SHAPE, batch_size, devices_per_network)
    ensemble = make_ensemble(
        classifier,
        optax.sgd(0.05, momentum=0.9),
        batch_size=batch_size,
        target_losses=(),
        norms=[],
        weight_decay=0.01,
        augment=augment,
        devices_per_network=devices_per_network,
    )
    members = [Member(i, i, "default_init", 0.0) for i in range(num_members)]
    padded = pad_members(members, ensemble.places)
    assert len(padded) == num_members + num_members % (2 // devices_per_network)
    keys = jnp.stack([member.key(0) for member in padded])
    state = ensemble.init(shard_members(keys, ensemble.mesh), None)
    labels = rng.integers(0, 10, (3, 40)).astype(np.int32)[[member.index for member in padded]]
    labels = shard_members(labels, ensemble.mesh)
    for epoch in range(2):
        key = share(jax.random.fold_in(make_order_key(0), epoch))
        state, metrics = ensemble.train_epoch(state, labels, share(images), key)
    together = jax.device_get((state.variables, metrics))
    return [take_member(together, i) for i in range(num_members)]


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), actual, expected
    )


@needs_two_devices
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("convnet3", {"augment": True, "num_members": 3}),
        ("convnet5", {"batch_size": 17}),  # one image of weight 0 in every batch
        ("linear", {"batch_size": 3}),
    ],
)
def test_parts_are_the_whole_batch(name, how):
    """Batch normalization takes its statistics over the whole batch, not over each part."""
    whole, divided = train(name, 1, **how), train(name, 2, **how)
    for one, other in zip(whole, divided, strict=True):
        assert_close(other, one)


@needs_two_devices
def test_each_device_gets_its_part():
    """The parts of all batches are the examples, each once; what is filled in has weight 0."""
    sizes = []

    def count(state, batch, key):
        sizes.append(batch.labels.shape)
        seen = jax.lax.psum(jnp.zeros(8).at[batch.labels].add(batch.weights), PART)
        return state._replace(variables=state.variables + seen), Metrics(*jnp.zeros(4))

    def epoch():
        state = TrainState(jnp.zeros(8), None)
        one_epoch = make_train_epoch(count, 5, axis_name=PART)
        return one_epoch(state, jnp.zeros((8, 2)), jnp.arange(8), jax.random.key(0))[0].variables

    nowhere = jax.sharding.PartitionSpec()
    how = {"mesh": member_mesh(2), "in_specs": (), "out_specs": nowhere, "check_vma": False}
    np.testing.assert_array_equal(jax.jit(jax.shard_map(epoch, **how))(), np.ones(8))
    assert set(sizes) == {(3,)}  # batches of 5 are filled to 6


RUN = ("--dataset=digits", "--train_size=40", "--test_size=20", "--batch_size=32", "--epochs=2")
RUN += ("--target_losses=9", "--stop_at_targets", "--test_every=1")
RUN += ("--pretrain_epochs=1", "--corruption_levels=0.5", "--checkpoint_every=1")
SHARED = (*RUN, "--devices_per_network=2")


class Interrupted(Exception):
    """Stands for a kill."""


@needs_two_devices
def test_a_run_with_shared_batches(tmp_path, invoke, capsys):
    """Its rows are those of one device up to rounding; it goes on from a checkpoint bit for bit."""
    invoke(*RUN, f"--workdir={tmp_path / 'one'}")
    hint = "1 of 2 cores would train a network: --devices_per_network=2 shares each batch\n"
    assert hint in capsys.readouterr().err
    invoke(*SHARED, f"--workdir={tmp_path / 'shared'}")
    assert "--devices_per_network" not in capsys.readouterr().err
    one, shared = (pd.read_csv(tmp_path / name / "results.csv") for name in ("one", "shared"))
    pd.testing.assert_frame_equal(one, shared, rtol=1e-4)
    record = json.loads((tmp_path / "shared" / "run.json").read_text())
    assert record["config"]["devices_per_network"] == 2

    def stop(run_dir, members, common, values):
        if common["step"] == 3:
            raise Interrupted
        return append(run_dir, members, common, values)

    append = metrics.append_metrics
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(metrics, "append_metrics", stop)
        invoke(*SHARED, f"--workdir={tmp_path / 'stopped'}")
    invoke(*SHARED, f"--workdir={tmp_path / 'stopped'}", "--resume")
    results = [(tmp_path / name / "results.csv").read_bytes() for name in ("shared", "stopped")]
    assert results[0] == results[1]
    with pytest.raises(SystemExit, match="--devices_per_network"):
        invoke(*RUN, f"--workdir={tmp_path / 'shared'}", "--resume")


class Own(nn.Module):
    """A network of a user."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(10, use_bias=False)(images.reshape(len(images), -1))


@needs_two_devices
def test_what_cannot_share_batches_is_refused(tmp_path, invoke, monkeypatch):
    workdir = f"--workdir={tmp_path / 'run'}"
    with pytest.raises(SystemExit, match="=3: must divide the"):
        invoke(*RUN, workdir, "--devices_per_network=3")
    with pytest.raises(SystemExit, match="=2: must not exceed --batch_size=1"):
        invoke(*SHARED, workdir, "--batch_size=1")
    own = f"--model={__name__}:Own"
    with pytest.raises(SystemExit, match="=2: only convnet3, convnet5, linear can be trained so"):
        invoke(*SHARED, workdir, own)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="=2: only for one process"):
        divide_batches(classifier_of("convnet3", SHAPE), SHAPE, 16, 2)
    assert not (tmp_path / "run" / "results.csv").exists()
