"""Keep the snapshot nearest to each target loss, inside the compiled loop.

The paper compares networks at one training loss (0.0044 in figure 3, 0.006 in figure 1). The end
of every epoch is a candidate. Only the nearest candidate is kept for each target, so memory is
O(targets), not O(epochs). Candidates are compared by their loss over the whole training set, which
is evaluated only if the running loss of the epoch is close enough.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from normjax.types import Array


class Snapshots(NamedTuple):
    """The best candidate so far for each of T targets.

    Attributes:
      variables: the variables of the candidates, every leaf [T, ...].
      loss: float32 [T], the loss over the whole training set; inf without a candidate.
      epoch: int32 [T], the epoch of the candidate.
      running_loss: float32 scalar, the running loss of the previous epoch; inf before the first.
    """

    variables: Any
    loss: Array
    epoch: Array
    running_loss: Array


def init_snapshots(variables: Any, num_targets: int) -> Snapshots:
    """Return a state without candidates; `variables` only provides shapes and dtypes."""
    empty = jax.tree.map(lambda x: jnp.zeros((num_targets, *x.shape), x.dtype), variables)
    infinite = jnp.full(num_targets, jnp.inf, jnp.float32)
    return Snapshots(empty, infinite, jnp.zeros(num_targets, jnp.int32), jnp.float32(jnp.inf))


def may_be_nearest(
    snapshots: Snapshots, targets: Array, running_loss: Array, running_error: Array
) -> Array:
    """Return whether the end of an epoch may be nearest to a target and must be evaluated.

    Running means take each example at the step that visits it. The loss at the end of the epoch is
    lower: by the decrease over one or two epochs, and by up to 10% because the loss of an example
    is taken before the step that lowers it. The epoch is skipped if no target lies in this range
    and none was passed without a candidate of zero error, or if the running error exceeds 2%.

    Args:
      snapshots: the state so far.
      targets: float32 [T], nats.
      running_loss: the running mean loss of the epoch, scalar.
      running_error: the running fraction of misclassified examples, scalar.

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
    """Keep a new candidate for each target that it is nearest to so far.

    Args:
      snapshots: the state so far.
      targets: float32 [T], nats.
      variables: the variables of the new candidate.
      loss: its cross entropy over the whole training set, scalar.
      error: its training error; only candidates with error 0 count.
      epoch: its epoch, scalar.
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
