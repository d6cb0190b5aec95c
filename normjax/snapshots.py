"""The snapshots nearest each target loss, kept inside the compiled loop.

The paper compares networks at one training loss (0.0044 in figure 3, 0.006 in figure 1). Every
epoch's end is a candidate; only the nearest one so far is kept for each target, so memory is
O(targets) and not O(epochs).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from normjax.types import Array


class Snapshots(NamedTuple):
    """For each of T targets, the best candidate so far; loss is inf where there was none."""

    variables: Any  # every leaf [T, ...]
    loss: Array  # float32 [T]: the candidate's own loss over the whole training set
    epoch: Array  # int32 [T]


def init_snapshots(variables: Any, num_targets: int) -> Snapshots:
    """No candidates yet; `variables` gives shapes and dtypes only."""
    empty = jax.tree.map(lambda x: jnp.zeros((num_targets, *x.shape), x.dtype), variables)
    return Snapshots(
        empty, jnp.full(num_targets, jnp.inf, jnp.float32), jnp.zeros(num_targets, jnp.int32)
    )


def update_snapshots(
    snapshots: Snapshots, targets: Array, variables: Any, loss: Array, error: Array, epoch: Array
) -> Snapshots:
    """Takes the candidate wherever it is nearer the target than what is kept.

    Args:
      snapshots: what is kept so far.
      targets: float32 [T], nats.
      variables: the candidate.
      loss: its own cross entropy over the whole training set, scalar.
      error: its training error; only candidates with error 0 count.
      epoch: when it was, scalar.
    """
    nearer = jnp.abs(loss - targets) < jnp.abs(snapshots.loss - targets)
    take = nearer & (error == 0)

    def choose(kept, candidate):
        mask = take.reshape(-1, *(1 for _ in jnp.shape(candidate)))
        return jnp.where(mask, candidate, kept)

    return Snapshots(*jax.tree.map(choose, tuple(snapshots), (variables, loss, epoch)))
