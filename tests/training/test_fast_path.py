"""The fast path: it trains as plain Flax does, and it lowers for accelerators that are not here."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from benchmarks import flax_contender
from normjax.norms import parse_norm
from normjax.training.ensemble import make_ensemble, shard_members, share, take_member
from normjax.training.step import Metrics
from tests.helpers.classifiers import classifier_of

pytestmark = pytest.mark.slow

NUM_STEPS, BATCH_SIZE, SHAPE = 20, 32, (16, 16, 3)
TX = optax.sgd(0.02, momentum=0.9)
both_nets = pytest.mark.parametrize("name", ["convnet3", "convnet5"])


def make(name):
    return make_ensemble(
        classifier_of(name, SHAPE, batch_norm=name == "convnet5"),
        TX,
        batch_size=BATCH_SIZE,
        target_losses=(0.1,),
        norms=[parse_norm("2"), parse_norm("spectral")],
    )


def make_data(num_members, num_images, seed=0):
    """Images that all members share, and labels of their own."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num_images, *SHAPE)).astype(np.uint8)
    labels = rng.integers(0, 10, (num_members, num_images)).astype(np.int32)
    return images, labels


def train_plainly(name, variables, images, labels):
    """One network by plain Flax, and its loss at each step on one batch."""
    step = jax.jit(flax_contender.make_step(flax_contender.NETS[name](), TX))
    opt_state, losses = TX.init(variables["params"]), []
    for _ in range(NUM_STEPS):
        variables, opt_state, loss = step(variables, opt_state, images, labels)
        losses.append(float(loss))
    return variables, losses


@both_nets
def test_twenty_steps_are_those_of_plain_flax(name):
    """Epochs of one batch, so that the order of the images does not matter.

    A member beside another one, in microbatches, by `conv2d`, against XLA's convolution of whole
    batches: losses to 1e-4, and parameters to 5e-3 of the distance that they have moved. 1e-6 of it
    is usual, but one pre-activation that rounds to the other side of 0 can make it 1e-3.
    """
    ensemble = make(name)
    images, labels = make_data(2, BATCH_SIZE)
    state = ensemble.init(shard_members(jax.random.split(jax.random.key(3), 2)), None)
    start = jax.device_get(state.variables)
    losses = []
    for i in range(NUM_STEPS):
        key = jax.random.fold_in(jax.random.key(0), i)
        args = (shard_members(labels), share(images), share(key))
        state, metrics = ensemble.train_epoch(state, *args)
        losses.append(metrics.loss)
    for member in range(2):
        own_start, own_end = take_member(start, member), take_member(state.variables, member)
        expected, plain_losses = train_plainly(name, own_start, images, labels[member])
        np.testing.assert_allclose(np.array(losses)[:, member], plain_losses, rtol=1e-4, atol=0)
        assert plain_losses[-1] < plain_losses[0] - 0.1

        def compare(actual, expected, start):
            moved = np.linalg.norm(expected - start)
            assert np.linalg.norm(actual - expected) <= 5e-3 * moved and moved > 1e-3

        jax.tree.map(compare, own_end, jax.device_get(expected), own_start)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@both_nets
def test_an_epoch_lowers_for_accelerators(name, platform, monkeypatch):
    """Two members a device, side by side: the first layer of both is one ordinary convolution."""
    num_members = 2 * len(jax.local_devices())
    ensemble = make(name)
    images, labels = make_data(num_members, 2 * BATCH_SIZE)
    images, labels = share(images), shard_members(labels)
    keys = jax.random.split(jax.random.key(0), num_members)
    state = ensemble.init(shard_members(keys), None)
    snapshots = ensemble.init_snapshots(state)
    now = (jnp.int32(1), jnp.bool(True))
    metrics = Metrics(*[jnp.ones(num_members)] * 4)
    calls = {
        "train_epoch": (state, labels, images, jax.random.key(0)),
        "track": (snapshots, state, labels, metrics, images, *now),
        "evaluate": (state.variables, labels, images),
    }
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu" if platform == "cuda" else platform)
    modules = {}
    for function, args in calls.items():
        exported = export.export(getattr(ensemble, function), platforms=[platform])(*args)
        assert exported.platforms == (platform,)
        assert exported.nr_devices == len(jax.local_devices())
        modules[function] = exported.mlir_module()
    num_layers = {"convnet3": 2, "convnet5": 5}[name]
    # Forward, kernel gradient, and input gradient of all layers but the first.
    assert modules["train_epoch"].count("stablehlo.convolution(") == 3 * num_layers - 1
    assert modules["track"].count("stablehlo.convolution(") == num_layers
    first, *others = re.findall(
        r"feature_group_count = (\d+).*?tensor<\w+>, tensor<(\w+)>\) -> tensor", modules["evaluate"]
    )
    assert first[0] == "1" and int(first[1].split("x")[3]) == 2 * {2: 24, 5: 32}[num_layers]
    assert [groups for groups, _ in others] == ["2"] * (num_layers - 1)
