"""The snapshots nearest each target loss, kept inside the compiled loop.

The paper compares networks at one training loss (0.0044 in figure 3, 0.006 in figure 1). The end
of every epoch is a candidate. Only the nearest so far is kept for each target, so memory is
O(targets), not O(epochs). A candidate is chosen by its own loss over the whole training set, which
is evaluated only after epochs whose running loss says that it may be the nearest.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from normjax.types import Array


class Snapshots(NamedTuple):
    """The best candidate so far for each of T targets.

    Attributes:
      variables: the candidates', every leaf [T, ...].
      loss: float32 [T], the candidate's own loss over the whole training set; inf for none.
      epoch: int32 [T], the epoch that the candidate ended.
      running_loss: float32 scalar, that of the epoch before; inf before the first.
    """

    variables: Any
    loss: Array
    epoch: Array
    running_loss: Array


def init_snapshots(variables: Any, num_targets: int) -> Snapshots:
    """Return the state without candidates; `variables` gives shapes and dtypes only."""
    empty = jax.tree.map(lambda x: jnp.zeros((num_targets, *x.shape), x.dtype), variables)
    infinite = jnp.full(num_targets, jnp.inf, jnp.float32)
    return Snapshots(empty, infinite, jnp.zeros(num_targets, jnp.int32), jnp.float32(jnp.inf))


def may_be_nearest(
    snapshots: Snapshots, targets: Array, running_loss: Array, running_error: Array
) -> Array:
    """Return whether the end of an epoch may be nearest to a target, so that it must be evaluated.

    Running means are over the epoch, with the parameters as they were when each example was seen.
    The loss at the epoch's end is below its running mean by what a falling loss loses in an epoch
    or two, and by up to 10% because an example's loss is taken before the step that lowers it. An
    epoch is skipped if no target lies in that range and none was passed without a network of zero
    error, or if more than 2% of its examples were misclassified.

    Args:
      snapshots: the state so far.
      targets: float32 [T], nats.
      running_loss: the mean loss of the epoch that has just ended, scalar.
      running_error: its fraction of misclassified examples, scalar.

    Returns:
      A boolean scalar.
    """
    change = jnp.abs(jnp.log(running_loss / snapshots.running_loss))  # inf after the first epoch
    highest, lowest = running_loss * jnp.exp(change), 0.9 * running_loss * jnp.exp(-3 * change)
    is_near = (lowest <= targets) & (targets <= highest)
    is_passed = (running_loss < targets) & jnp.isinf(snapshots.loss)
    return jnp.any(is_near | is_passed) & (running_error <= 0.02)


def update_snapshots(
    snapshots: Snapshots, targets: Array, variables: Any, loss: Array, error: Array, epoch: Array
) -> Snapshots:
    """Keep the candidate for each target that it is nearer to than the candidate so far.

    Args:
      snapshots: the state so far.
      targets: float32 [T], nats.
      variables: the candidate's.
      loss: its own cross entropy over the whole training set, scalar.
      error: its training error; only candidates with error 0 count.
      epoch: the epoch that it ended, scalar.
    """
    nearer = jnp.abs(loss - targets) < jnp.abs(snapshots.loss - targets)
    take = nearer & (error == 0)

    def choose(kept, candidate):
        mask = take.reshape(-1, *(1 for _ in jnp.shape(candidate)))
        return jnp.where(mask, candidate, kept)

    return Snapshots(
        variables=jax.tree.map(choose, snapshots.variables, variables),
        loss=choose(snapshots.loss, loss),
        epoch=choose(snapshots.epoch, epoch),
        running_loss=snapshots.running_loss,
    )
