"""Map the functions of one network over many: the member axis appears here and nowhere else.

Members share the images and the order in which they are visited. Each has its own key and labels,
and its result depends on nothing but its own definition.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from normjax.batch_norm import absorb_batch_norm
from normjax.norms import NamedNorm
from normjax.training import evaluate as evaluation
from normjax.training.snapshots import init_snapshots, may_be_nearest, update_snapshots
from normjax.training.step import (
    choose_microbatch_size,
    init_state,
    make_train_epoch,
    make_train_step,
    reset_optimizer,
)
from normjax.types import Array

AXIS = "member"


class Member(NamedTuple):
    """One network of a sweep.

    Attributes:
      index: its number in the run's tables.
      seed: 0 .. num_seeds - 1.
      family: pretrain | init_scale | default_init | random_labels.
      level: the corruption fraction, or the initial standard deviation.
      init_std: that of every parameter; None is the default initialization.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    seed: int
    family: str
    level: float
    init_std: float | None = None

    def stream(self, run_seed: int) -> list[int]:
        """Return the seeds of its randomness: its own definition, never its place in the run."""
        return [run_seed, self.seed, zlib.crc32(f"{self.family}:{float(self.level)!r}".encode())]

    def key(self, run_seed: int) -> Array:
        """Return the member's own JAX key."""
        first, *rest = self.stream(run_seed)
        key = jax.random.key(first)
        for number in rest:
            key = jax.random.fold_in(key, number)
        return key


def make_order_key(run_seed: int) -> Array:
    """Return the key of the epochs' orders of images, independent of the members' keys."""
    return jax.random.fold_in(jax.random.key(run_seed), zlib.crc32(b"order"))


class LossAndError(NamedTuple):
    """A network's means over a whole data set, not normalized; NaN where they were not needed."""

    loss: Array
    error: Array


class Ensemble(NamedTuple):
    """Compiled functions of stacked members: every leaf of a state has a leading axis M.

    Attributes:
      init: (keys [M], init_stds [M] or None) -> TrainState.
      reset_optimizer: TrainState -> TrainState.
      train_epoch: (TrainState, labels [M, N], images, key) -> (TrainState, Metrics [M]).
      init_snapshots: TrainState -> Snapshots.
      track: (Snapshots, TrainState, labels, Metrics [M], images, epoch, is_last) ->
        (Snapshots, LossAndError [M]).
      evaluate_plainly: (variables, labels [M, N], images) -> LossAndError [M].
      evaluate: (variables, labels [M, N], images) -> EvaluationSums [M].
    """

    init: Callable
    reset_optimizer: Callable
    train_epoch: Callable
    init_snapshots: Callable
    track: Callable
    evaluate_plainly: Callable
    evaluate: Callable


def make_ensemble(
    model: nn.Module,
    model_without_bn: nn.Module,
    tx: optax.GradientTransformation,
    *,
    image_shape: tuple[int, int, int],
    batch_size: int,
    target_losses: Sequence[float],
    norms: Sequence[NamedNorm],
) -> Ensemble:
    """Make the functions that train and evaluate many networks of one kind.

    Args:
      model: the network that is trained.
      model_without_bn: the same without batch normalization, evaluated with the parameters that
        `absorb_batch_norm` returns.
      tx: the optimizer.
      image_shape: (H, W, C).
      batch_size: examples per step.
      target_losses: the training losses, in nats, to keep snapshots at.
      norms: the norms to evaluate under.
    """
    microbatch_size = choose_microbatch_size(model, batch_size)
    train_step = make_train_step(model, tx, microbatch_size)
    train_epoch = make_train_epoch(train_step, batch_size, microbatch_size)
    targets = jnp.asarray(target_losses, jnp.float32)

    def make_evaluate(norms):
        def apply_fn(params, x, /):
            return jnp.asarray(model_without_bn.apply({"params": params}, x))

        batch_size = evaluation.choose_evaluation_batch_size()
        evaluate = evaluation.make_evaluate(apply_fn, norms, batch_size)
        return lambda variables, labels, images: evaluate(
            absorb_batch_norm(variables), images, labels
        )

    evaluate_without_norms = make_evaluate(())

    def evaluate_plainly(variables, labels, images):
        sums = evaluate_without_norms(variables, labels, images)
        return LossAndError(jnp.sum(sums.loss) / len(labels), jnp.sum(sums.error) / len(labels))

    def init(key, init_std):
        own_model = model if init_std is None else model.clone(init_std=init_std)
        return init_state(own_model, tx, key, image_shape)

    def track(snapshots, state, labels, metrics, images, epoch, is_last):
        def evaluate_and_choose():
            variables = state.variables
            found = evaluate_plainly(variables, labels, images)
            kept = update_snapshots(snapshots, targets, variables, found.loss, found.error, epoch)
            return kept, found

        is_needed = is_last | may_be_nearest(snapshots, targets, metrics.loss, metrics.error)
        unknown = LossAndError(jnp.float32(jnp.nan), jnp.float32(jnp.nan))
        kept, found = jax.lax.cond(is_needed, evaluate_and_choose, lambda: (snapshots, unknown))
        return kept._replace(running_loss=metrics.loss), found

    return Ensemble(
        init=map_members(init),
        reset_optimizer=map_members(lambda state: reset_optimizer(tx, state)),
        train_epoch=map_members(
            lambda state, labels, images, key: train_epoch(state, images, labels, key),
            num_shared=2,
        ),
        init_snapshots=map_members(lambda s: init_snapshots(s.variables, len(target_losses))),
        # One by one on every platform: side by side, no member could skip what another needs.
        track=map_members(track, num_shared=3, one_by_one=True),
        evaluate_plainly=map_members(evaluate_plainly, num_shared=1),
        evaluate=map_members(make_evaluate(norms), num_shared=1),
    )


def map_members(fn: Callable, *, num_shared: int = 0, one_by_one: bool = False) -> Callable:
    """Compile a function of one network for stacked members, sharded over the local devices.

    Args:
      fn: a function whose last `num_shared` arguments are the same for all members.
      num_shared: the number of shared arguments.
      one_by_one: a device runs its members one after another, on every platform.

    Returns:
      The function of stacked arguments (leading axis M, a multiple of the number of devices). On a
      CPU a device runs its members one after another, because the activations of one small network
      fit its cache and those of many do not; elsewhere they run side by side.
    """

    def of_members(*args):
        split = len(args) - num_shared
        own, shared = args[:split], args[split:]
        if one_by_one or jax.default_backend() == "cpu":
            return jax.lax.map(lambda own: fn(*own, *shared), own)
        return jax.vmap(lambda *own: fn(*own, *shared))(*own)

    def sharded(*args):
        split = len(args) - num_shared
        specs = (PartitionSpec(AXIS),) * split + (PartitionSpec(),) * num_shared
        return jax.shard_map(
            of_members,
            mesh=member_mesh(),
            in_specs=specs,
            out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )(*args)

    return jax.jit(sharded)


def member_mesh() -> Mesh:
    """Return the mesh of all local devices along the member axis."""
    return Mesh(np.array(jax.local_devices()), (AXIS,))


def shard_members(tree: Any) -> Any:
    """Place stacked leaves on the devices, split along the member axis."""
    return jax.device_put(tree, NamedSharding(member_mesh(), PartitionSpec(AXIS)))


def share(tree: Any) -> Any:
    """Place a copy of what all members share on every device."""
    return jax.device_put(tree, NamedSharding(member_mesh(), PartitionSpec()))


def pad_members(members: Sequence[Member]) -> list[Member]:
    """Return the members that this process trains, padded with copies of the last member.

    Copies are appended until the devices of all processes divide the count. Then the members are
    dealt out in order, the same number to each process. Copies are reported nowhere.
    """
    num_here = -(-len(members) // jax.process_count())
    num_here += -num_here % len(jax.local_devices())
    padded = [*members, *[members[-1]] * (num_here * jax.process_count() - len(members))]
    start = jax.process_index() * num_here
    return padded[start : start + num_here]


def gather_members(tree: Any, num_members: int) -> Any:
    """Gather the members' leaves from all processes, as numpy arrays on each of them.

    Every process must call this function, and waits for the others.

    Args:
      tree: stacked leaves [M', ...] for the members that `pad_members` gave this process.
      num_members: M, of all processes.

    Returns:
      The tree with leaves [M, ...] in the order of the members, without the copies.
    """

    def gather(x):
        if not x.size:
            return np.empty((num_members, *x.shape[1:]), x.dtype)
        if jax.process_count() > 1:
            x = multihost_utils.process_allgather(np.asarray(x), tiled=True)
        return np.asarray(x)[:num_members]

    return jax.tree.map(gather, tree)


def take_process_members(tree: Any, num_here: int) -> Any:
    """Return this process's part [M', ...] of stacked leaves [M, ...], numpy arrays.

    The inverse of `gather_members`: the members are those of `pad_members`, and `num_here` is M'.
    """
    indices = np.arange(num_here) + jax.process_index() * num_here
    return jax.tree.map(lambda x: x[np.minimum(indices, len(x) - 1)], tree)


def take_member(tree: Any, index: int) -> Any:
    """Return one member's part of a stacked tree, as numpy arrays."""
    return jax.tree.map(lambda x: np.asarray(x[index]), tree)
