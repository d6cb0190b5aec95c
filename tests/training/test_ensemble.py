"""Many networks at once: each depends on nothing but its own definition."""

import functools

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax.data import corrupt_labels, load_dataset
from normjax.norms import parse_norm
from normjax.training import ensemble as ensembles
from normjax.training.ensemble import (
    Member,
    gather_members,
    make_ensemble,
    pad_members,
    shard_members,
    share,
    take_member,
    take_process_members,
)
from tests.helpers.classifiers import classifier_of

pytestmark = pytest.mark.slow

A = Member(0, 0, "pretrain", 0.0)
B = Member(1, 0, "pretrain", 1.0)
C = Member(2, 1, "pretrain", 1.0)


@functools.cache
def images_and_labels():
    train = load_dataset("digits", train_size=50).train
    return train.images, train.labels


def make(name="linear"):
    return make_once(name, jax.default_backend(), len(jax.local_devices()))


@functools.cache
def make_once(name, _backend, _num_devices, stop_at_targets=False):
    return make_ensemble(
        classifier_of(name),
        optax.sgd(0.05, momentum=0.9),
        batch_size=16,
        target_losses=(0.01,),
        norms=[parse_norm("2"), parse_norm("1/100")],
        stop_at_targets=stop_at_targets,
    )


def labels_of(members):
    """Each member's own labels, drawn from its own stream."""
    _, labels = images_and_labels()
    options = {"method": "swap", "num_classes": 10}
    return np.stack(
        [
            corrupt_labels(labels, m.level, rng=np.random.default_rng(m.stream(0)), **options)[0]
            for m in members
        ]
    )


def train(ensemble, members, change=lambda state: state):
    """Two epochs of members trained together: {member: its state, metrics, evaluation}."""
    padded = pad_members(members)
    images = share(images_and_labels()[0])
    labels = shard_members(labels_of(padded))
    state = ensemble.init(shard_members(jnp.stack([m.key(0) for m in padded])), None)
    state = change(state)
    snapshots = ensemble.init_snapshots(state)
    for epoch in range(2):
        key = jax.random.fold_in(jax.random.key(0), epoch)
        state, metrics = ensemble.train_epoch(state, labels, images, key)
    snapshots, measured = ensemble.track(
        snapshots, state, labels, metrics, images, jnp.int32(2), jnp.bool(True)
    )
    evaluation = ensemble.evaluate(state.variables, labels, images)
    # How many batches an evaluation takes is the machine's business: only sums are compared.
    products = evaluation.product_norms
    evaluation = jax.tree.map(lambda sums: sums.sum(-1), evaluation)._replace(
        product_norms=products
    )
    together = jax.device_get((state, metrics, measured, evaluation))
    return {m: take_member(together, i) for i, m in enumerate(members)}


def assert_same(actual, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected
    )


def kernel_of(result):
    return result[0].variables["params"]["Dense_0"]["kernel"]


def test_a_member_does_not_depend_on_its_neighbors_or_its_place():
    ensemble = make()
    together = train(ensemble, [A, B, C])
    for members in ([A], [C, B], [B, C, A, A]):
        for member, result in train(ensemble, members).items():
            assert_same(result, together[member])
    # Neither is the comparison empty: all three differ, also in nothing but their seed.
    for one, other in ((A, B), (B, C), (A, C)):
        assert np.abs(kernel_of(together[one]) - kernel_of(together[other])).max() > 0.05


def test_a_member_does_not_depend_on_the_number_of_devices(monkeypatch):
    if len(jax.local_devices()) == 1:
        pytest.skip("needs two devices to compare with one")
    assert len(jax.tree.leaves(shard_members(jnp.zeros((2, 3))))[0].sharding.device_set) > 1
    several = train(make(), [A, B])
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert ensembles.member_mesh().size == 1
    one = train(make(), [B, A])
    for member in (A, B):
        assert_same(one[member], several[member])


def test_side_by_side_is_one_after_another(monkeypatch):
    """The path of accelerators (vmap, XLA's convolution, whole batches) and that of CPUs (map)."""
    expected = train(make("convnet3"), [A, C])
    backend = jax.default_backend()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu" if backend == "cpu" else "cpu")
    actual = train(make("convnet3"), [A, C])
    for member in (A, C):
        assert_same(actual[member], expected[member], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_diverged_member_leaves_its_neighbors_untouched(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)

    def poison(state):
        """The first member's weights become NaN."""
        variables = jax.tree.map(lambda x: x.at[0].set(jnp.nan), state.variables)
        return state._replace(variables=variables)

    ensemble = make()
    healthy = train(ensemble, [A, B, C])
    poisoned = train(ensemble, [A, B, C], poison)
    for member in (B, C):
        assert_same(poisoned[member], healthy[member], rtol=0, atol=0)
    _, metrics, measured, evaluation = poisoned[A]
    assert np.isnan(metrics.loss) and np.isnan(measured.loss)
    assert np.isnan(evaluation.normalized_excess).all()
    assert evaluation.error == 50  # a NaN is never a right answer


def test_a_stopped_network_is_not_measured_in_the_last_epoch():
    """Its snapshots would get that epoch where rounding makes an equal loss seem nearer."""

    def stop(state):
        return state._replace(stopped_at=state.stopped_at.at[0].set(1))

    ensemble = make_once("linear", jax.default_backend(), len(jax.local_devices()), True)
    results = train(ensemble, [A, B, C], stop)
    assert [bool(np.isfinite(results[m][2].loss)) for m in (A, B, C)] == [False, True, True]


def test_skipped_epochs_would_not_have_been_kept():
    """Snapshots with and without measuring every epoch, while 50 digits are being memorized."""
    ensemble = make("convnet3")
    images = share(images_and_labels()[0])
    labels = shard_members(labels_of([A, B]))
    state = ensemble.init(shard_members(jnp.stack([m.key(0) for m in (A, B)])), None)
    sparing = thorough = ensemble.init_snapshots(state)
    skipped = []
    for epoch in range(1, 71):
        key = jax.random.fold_in(jax.random.key(0), epoch)
        state, metrics = ensemble.train_epoch(state, labels, images, key)
        args = (state, labels, metrics, images, jnp.int32(epoch))
        sparing, measured = ensemble.track(sparing, *args, jnp.bool(False))
        thorough, always = ensemble.track(thorough, *args, jnp.bool(True))
        skipped.append(np.isnan(measured.loss))
        np.testing.assert_array_equal(measured.loss, np.where(skipped[-1], np.nan, always.loss))
    assert_same(sparing, thorough, rtol=0, atol=0)
    np.testing.assert_allclose(sparing.loss[:, 0], 0.01, rtol=0.2)
    assert np.all(np.mean(skipped, axis=0) > 0.5)


def test_nothing_is_compiled_again_after_the_first_epoch():
    compilations = []

    def listen(event, _duration, **_):
        if event.endswith("backend_compile_duration"):
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    ensemble = make_once.__wrapped__("linear", None, None)
    images = share(images_and_labels()[0])
    keys = shard_members(jnp.stack([m.key(0) for m in (A, B)]))
    corrupted = shard_members(labels_of([A, B]))
    true = shard_members(np.stack([images_and_labels()[1]] * 2))
    state = ensemble.init(keys, None)
    snapshots = ensemble.init_snapshots(state)
    counts = []
    for step in range(6):
        labels = corrupted if step < 3 else true
        if step == 3:
            state = ensemble.reset_optimizer(state)
        key = jax.random.fold_in(share(jax.random.key(0)), step)
        before = len(compilations)
        state, metrics = ensemble.train_epoch(state, labels, images, key)
        now = (jnp.int32(step), jnp.bool(step == 5))
        snapshots, _ = ensemble.track(snapshots, state, labels, metrics, images, *now)
        counts.append(len(compilations) - before)
    assert counts[0] >= 2  # the listener does hear: train_epoch and track
    assert counts[1:] == [0] * 5
    # The networks of every selection are evaluated by one program for each split.
    counts = []
    for variables in (state.variables, jax.tree.map(lambda x: x[:, 0], snapshots.variables)):
        variables = shard_members(variables)
        before = len(compilations)
        ensemble.evaluate(variables, true, images)
        counts.append(len(compilations) - before)
    assert counts[0] >= 1 and counts[1] == 0


def test_a_members_randomness_is_its_definitions():
    member = Member(3, 2, "pretrain", 0.25)
    data = lambda member, seed: jax.random.key_data(member.key(seed)).tolist()  # noqa: E731
    for same in (member._replace(index=9), member._replace(level=np.float64(0.25))):
        assert same.stream(5) == member.stream(5)
        assert data(same, 5) == data(member, 5)
    assert Member(0, 1, "pretrain", 1).stream(5) == Member(0, 1, "pretrain", 1.0).stream(5)
    others = [
        (member, 6),
        (member._replace(seed=3), 5),
        (member._replace(family="init_scale"), 5),
        (member._replace(level=0.5), 5),
        (Member(3, 5, "pretrain", 0.25), 2),  # the seeds exchanged
    ]
    streams = [tuple(m.stream(seed)) for m, seed in [(member, 5), *others]]
    keys = [tuple(data(m, seed)) for m, seed in [(member, 5), *others]]
    assert len(set(streams)) == len(set(keys)) == 6
    # Frozen, so that a run can be repeated in another version: CRC-32 of "pretrain:0.25".
    assert member.stream(5) == [5, 2, 3753817505]


def test_members_are_padded_to_the_number_of_devices(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [None] * 4)
    assert pad_members([A, B, C]) == [A, B, C, C]
    assert pad_members([A]) == [A] * 4
    assert pad_members([A, B, C, A]) == [A, B, C, A]


@pytest.mark.parametrize("num_members", [1, 4, 5, 11])
def test_members_are_dealt_out_to_processes_and_put_together(monkeypatch, num_members):
    """Three processes of two devices, one after another; the gathering itself is stood in for."""
    members = [A._replace(index=index) for index in range(num_members)]
    whole = np.arange(num_members * 2, dtype=np.float32).reshape(-1, 2)
    monkeypatch.setattr(jax, "local_devices", lambda: [None] * 2)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    dealt, parts = [], []
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        dealt.append(pad_members(members))
        parts.append(take_process_members({"a": whole}, len(dealt[-1]))["a"])
        indices = [member.index for member in dealt[-1]]
        np.testing.assert_array_equal(parts[-1], whole[indices])
    assert len({len(part) for part in dealt}) == 1 and len(dealt[0]) % 2 == 0
    assert len(dealt[0]) < num_members / 3 + 2  # no more copies than it takes
    everyone = [member for part in dealt for member in part]
    assert everyone[:num_members] == members and set(everyone[num_members:]) <= {members[-1]}

    def process_allgather(x, tiled):
        assert tiled
        np.testing.assert_array_equal(x, parts[2])
        return np.concatenate(parts)

    monkeypatch.setattr(ensembles.multihost_utils, "process_allgather", process_allgather)
    gathered = gather_members((parts[2], jnp.zeros((len(parts[2]), 0))), num_members)
    np.testing.assert_array_equal(gathered[0], whole)
    assert gathered[1].shape == (num_members, 0)


def test_gathering_drops_the_copies():
    stacked = {"a": shard_members(jnp.arange(8.0)), "b": np.zeros((8, 0))}
    gathered = gather_members(stacked, 5)
    assert isinstance(gathered["a"], np.ndarray) and gathered["a"].tolist() == [0, 1, 2, 3, 4]
    assert gathered["b"].shape == (5, 0)


def test_take_member_takes_one_of_each_leaf():
    tree = {"a": jnp.arange(6).reshape(3, 2), "b": jnp.array([1.0, 2.0, 3.0])}
    taken = take_member(tree, 1)
    assert isinstance(taken["a"], np.ndarray)
    assert taken["a"].tolist() == [2, 3] and taken["b"] == 2.0
