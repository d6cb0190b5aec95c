"""Snapshots: nearest each target so far, with zero training error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.training.snapshots import init_snapshots, may_be_nearest, update_snapshots

TARGETS = np.array([0.05, 0.2, 0.7], np.float32)


def variables_of(epoch):
    """A network that says which epoch it is from."""
    return {"params": {"kernel": epoch * jnp.ones((2, 3)), "bias": jnp.float32(epoch)}}


def keep(losses, errors):
    """The snapshots after a sequence of epochs 1, 2, ..., inside a compiled loop."""

    def body(snapshots, epoch):
        now = variables_of(epoch.astype(jnp.float32))
        loss, error = losses[epoch - 1], errors[epoch - 1]
        return update_snapshots(snapshots, TARGETS, now, loss, error, epoch), None

    start = init_snapshots(variables_of(0.0), len(TARGETS))
    return jax.lax.scan(body, start, jnp.arange(1, len(losses) + 1))[0]


def simulate(losses, errors):
    """The same by looking at the whole history: (loss, epoch) for each target."""
    kept = []
    for target in TARGETS:
        candidates = [
            (abs(loss - target), epoch, loss)
            for epoch, (loss, error) in enumerate(zip(losses, errors, strict=True), start=1)
            if error == 0 and np.isfinite(loss)
        ]
        _, epoch, loss = min(candidates, default=(None, 0, np.inf))
        kept.append((loss, epoch))
    return np.array(kept).T


def test_random_histories_of_many_members_against_numpy():
    rng = np.random.default_rng(0)
    shape = (300, 12)
    # A coarse grid makes ties, of which the earliest counts; NaN and inf are diverged epochs.
    losses = rng.choice(np.array([0.0, 0.04, 0.1, 0.2, 0.3, 0.6, 1.5, np.nan, np.inf]), shape)
    errors = rng.choice(np.array([0.0, 0.01]), shape, p=[0.3, 0.7])
    losses, errors = losses.astype(np.float32), errors.astype(np.float32)
    snapshots = jax.jit(jax.vmap(keep))(losses, errors)
    expected = np.array([simulate(*member) for member in zip(losses, errors, strict=True)])
    expected_loss, expected_epoch = expected[:, 0], expected[:, 1]
    np.testing.assert_array_equal(snapshots.loss, expected_loss.astype(np.float32))
    np.testing.assert_array_equal(snapshots.epoch, expected_epoch)
    # The variables are those of the epoch that is named; zeros where there was none.
    kernel, bias = snapshots.variables["params"]["kernel"], snapshots.variables["params"]["bias"]
    np.testing.assert_array_equal(kernel, np.tile(expected_epoch[..., None, None], (2, 3)))
    np.testing.assert_array_equal(bias, expected_epoch)
    # Every case did occur.
    assert np.isinf(expected_loss).any() and len(np.unique(expected_epoch)) == 13
    assert any(len(set(member)) == 3 for member in expected_epoch)


def test_a_target_is_never_reached_while_there_are_errors():
    snapshots = keep(jnp.array([0.05, 0.2, 0.7]), jnp.array([0.01, 0.5, 0.1]))
    np.testing.assert_array_equal(snapshots.loss, np.full(3, np.inf, np.float32))
    np.testing.assert_array_equal(snapshots.epoch, np.zeros(3))


def test_without_targets_there_is_nothing_to_keep():
    empty = init_snapshots(variables_of(0.0), 0)
    updated = update_snapshots(
        empty, jnp.zeros(0), variables_of(1.0), jnp.float32(0.1), jnp.float32(0), jnp.int32(1)
    )
    assert updated.loss.shape == (0,)
    assert updated.variables["params"]["kernel"].shape == (0, 2, 3)


@pytest.mark.parametrize(
    ("before", "now", "error", "kept", "expected"),
    [
        (np.inf, 9.0, 0.0, np.inf, True),  # the first epoch: no change is known
        (2.0, 1.9, 0.0, np.inf, False),  # far above 0.7
        (0.77, 0.76, 0.0, np.inf, True),  # 0.9 * 0.76 is below 0.7
        (0.801, 0.8, 0.0, np.inf, False),  # 0.9 * 0.8 is not
        (1.0, 0.8, 0.0, np.inf, True),  # but it may be with a change of 22%
        (1.0, 0.8, 0.03, np.inf, False),  # 3% were misclassified
        (0.71, 0.69, 0.0, 0.71, True),  # 0.7 was passed by less than the last change
        (0.411, 0.41, 0.0, np.inf, True),  # 0.7 was passed without a snapshot
        (0.411, 0.41, 0.0, 0.69, False),  # 0.7 was passed with one, 0.2 is far
        (0.41, np.nan, 0.0, 0.69, False),
    ],
)
def test_an_epoch_is_measured_if_it_may_be_the_nearest(before, now, error, kept, expected):
    snapshots = init_snapshots(variables_of(0.0), 3)._replace(
        loss=jnp.array([np.inf, np.inf, kept]), running_loss=jnp.float32(before)
    )
    found = may_be_nearest(snapshots, TARGETS, jnp.float32(now), jnp.float32(error))
    assert bool(found) is expected


def test_nothing_is_measured_for_no_target():
    empty = init_snapshots(variables_of(0.0), 0)
    assert not may_be_nearest(empty, jnp.zeros(0), jnp.float32(1), jnp.float32(0))
