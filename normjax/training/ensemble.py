"""Map functions of one network over many members. Only this module knows the member axis.

Members share the images and their order. Each has its own key and labels, and its result depends
only on its own definition.
"""

import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from normjax.networks.classifier import Classifier
from normjax.norms import NamedNorm
from normjax.training import evaluate as evaluation
from normjax.training.snapshots import init_snapshots, may_be_nearest, update_snapshots
from normjax.training.step import (
    choose_microbatch_size,
    init_state,
    make_train_epoch,
    make_train_step,
    reset_optimizer,
    unless_stopped,
)
from normjax.training.strategies import ALL
from normjax.types import Array

AXIS = "member"
PART = "part"  # of each batch


class Member(NamedTuple):
    """One network of a sweep.

    Attributes:
      index: the member's number in results.csv.
      seed: 0 .. num_seeds - 1.
      family: pretrain | init_scale | default_init | random_labels.
      level: the corruption fraction or the initial standard deviation.
      init_std: initial standard deviation of all parameters; None: the default initialization.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    seed: int
    family: str
    level: float
    init_std: float | None = None

    def stream(self, run_seed: int) -> list[int]:
        """Return the seeds of the member's randomness, which do not depend on its index."""
        return [run_seed, self.seed, zlib.crc32(f"{self.family}:{float(self.level)!r}".encode())]

    def key(self, run_seed: int) -> Array:
        """Return the member's own JAX key."""
        first, *rest = self.stream(run_seed)
        key = jax.random.key(first)
        for number in rest:
            key = jax.random.fold_in(key, number)
        return key


def make_order_key(run_seed: int) -> Array:
    """Return the key for the order of the images, independent of the members' keys."""
    return jax.random.fold_in(jax.random.key(run_seed), zlib.crc32(b"order"))


class LossAndError(NamedTuple):
    """Means of an unnormalized network over a whole data set; NaN if not evaluated."""

    loss: Array
    error: Array


class Ensemble(NamedTuple):
    """Compiled functions of stacked members: every leaf of a state has a leading axis M.

    `train_epoch` and `pretrain_epoch` reuse the memory of the state: it can't be used again.

    Attributes:
      init: (keys [M], init_stds [M] or None) -> TrainState.
      reset_optimizer: TrainState -> TrainState.
      pretrain_epoch: `train_epoch` without weight decay and augmentation, for the first phase; None
        if there is neither.
      train_epoch: (TrainState, labels [M, N], images, key) -> (TrainState, Metrics [M]).
      init_snapshots: TrainState -> Snapshots.
      track: (Snapshots, TrainState, labels, Metrics [M], images, epoch, is_last) ->
        (Snapshots, LossAndError [M]).
      evaluate_plainly: (variables, labels [M, N], images) -> LossAndError [M].
      evaluate: (variables, labels [M, N], images) -> EvaluationSums [M].
      mesh: the devices, see `member_mesh`.
    """

    init: Callable
    reset_optimizer: Callable
    pretrain_epoch: Callable | None
    train_epoch: Callable
    init_snapshots: Callable
    track: Callable
    evaluate_plainly: Callable
    evaluate: Callable
    mesh: Mesh

    @property
    def places(self) -> int:
        """How many networks train side by side if each local device, or group of them, has one."""
        return self.mesh.shape[AXIS]


def make_ensemble(
    classifier: Classifier,
    tx: optax.GradientTransformation,
    *,
    batch_size: int,
    target_losses: Sequence[float],
    norms: Sequence[NamedNorm],
    weight_decay: float = 0.0,
    augment: bool = False,
    stop_at_targets: bool = False,
    matmul_precision: str = "default",
    at_once: int | None = None,
    devices_per_network: int = 1,
) -> Ensemble:
    """Make the functions that train and evaluate many networks of one architecture.

    Args:
      classifier: the network.
      tx: the optimizer.
      batch_size: examples per step.
      target_losses: training losses, in nats, at which to keep snapshots.
      norms: the norms to normalize by.
      weight_decay: that of the second phase, see `make_train_step`.
      augment: whether the second phase augments its images, see `make_train_epoch`.
      stop_at_targets: whether a network stops training once it has a snapshot for each target and a
        loss over the training set, with zero error, no higher than any of them.
      matmul_precision: that of training, see `make_train_step`.
      at_once: networks that a device trains and evaluates side by side, see `map_members`.
      devices_per_network: devices that train each network, each on a part of every batch;
        statistics of batch normalization must be combined over the axis `PART`.
    """
    mesh = member_mesh(devices_per_network)
    axis_name = PART if devices_per_network > 1 else None
    microbatch_size = choose_microbatch_size(classifier, -(-batch_size // devices_per_network))
    targets = jnp.asarray(target_losses, jnp.float32)

    def make_evaluate(norms):
        batch_size = evaluation.choose_evaluation_batch_size()
        evaluate = evaluation.make_evaluate(classifier, norms, batch_size)
        return lambda variables, labels, images: evaluate(variables, images, labels)

    def map_train_epoch(weight_decay, augment):
        step = make_train_step(
            classifier, tx, microbatch_size, weight_decay, matmul_precision, axis_name
        )
        epoch = make_train_epoch(
            step, batch_size, microbatch_size, augment=augment, axis_name=axis_name
        )
        if stop_at_targets:
            epoch = unless_stopped(epoch, axis_name)
        return map_members(
            lambda state, labels, images, key: epoch(state, images, labels, key),
            num_shared=2,
            at_once=at_once,
            donate=True,
            mesh=mesh,
        )

    evaluate_without_norms = make_evaluate(())

    def evaluate_plainly(variables, labels, images):
        sums = evaluate_without_norms(variables, labels, images)
        return LossAndError(jnp.sum(sums.loss) / len(labels), jnp.sum(sums.error) / len(labels))

    def track(snapshots, state, labels, metrics, images, epoch, is_last):
        def evaluate_and_choose():
            variables = state.variables
            found = evaluate_plainly(variables, labels, images)
            kept = update_snapshots(snapshots, targets, variables, found.loss, found.error, epoch)
            return kept, found

        if augment:  # the running metrics are of the augmented images
            is_near = jnp.bool(len(target_losses) > 0)
        else:
            is_near = may_be_nearest(snapshots, targets, metrics.loss, metrics.error)
        if stop_at_targets:  # a network past all targets may have to stop
            is_near |= jnp.all(jnp.isfinite(snapshots.loss)) & (metrics.loss < jnp.min(targets))
        is_needed = is_last | is_near
        if stop_at_targets:  # a stopped network is as it was last measured
            is_needed &= state.stopped_at == 0
        unknown = LossAndError(jnp.float32(jnp.nan), jnp.float32(jnp.nan))
        kept, found = jax.lax.cond(is_needed, evaluate_and_choose, lambda: (snapshots, unknown))
        return kept._replace(running_loss=metrics.loss), found

    mapped = partial(map_members, mesh=mesh)
    return Ensemble(
        init=mapped(
            lambda key, std: init_state(classifier, tx, key, std, may_stop=stop_at_targets)
        ),
        reset_optimizer=mapped(lambda state: reset_optimizer(tx, state)),
        pretrain_epoch=map_train_epoch(0.0, False) if weight_decay or augment else None,
        train_epoch=map_train_epoch(weight_decay, augment),
        init_snapshots=mapped(lambda s: init_snapshots(s.variables, len(target_losses))),
        # One by one on every platform: under vmap, no member could skip its evaluation.
        track=mapped(track, num_shared=3, at_once=1),
        evaluate_plainly=mapped(evaluate_plainly, num_shared=1, at_once=at_once),
        evaluate=mapped(make_evaluate(norms), num_shared=1, at_once=at_once),
        mesh=mesh,
    )


def map_members(
    fn: Callable,
    *,
    num_shared: int = 0,
    at_once: int | None = None,
    donate: bool = False,
    mesh: Mesh | None = None,
) -> Callable:
    """Compile a function of one network for stacked members, sharded over the local devices.

    Args:
      fn: a function whose last `num_shared` arguments are the same for all members.
      num_shared: the number of shared arguments.
      at_once: members that a device runs side by side, by `vmap`; it loops over the others. None:
        one on a CPU, because the activations of one small network fit in its cache, `ALL`
        elsewhere.
      donate: whether the first argument's memory is reused for the result; it can't be used again.
      mesh: the devices; by default `member_mesh()`. All devices along `PART` run the same networks.

    Returns:
      The function of stacked arguments (leading axis M, a multiple of the mesh's axis `AXIS`).
    """

    def of_members(*args):
        split = len(args) - num_shared
        own, shared = args[:split], args[split:]

        def of_one(own):
            return fn(*own, *shared)

        size = at_once or (1 if jax.default_backend() == "cpu" else ALL)
        if size == 1:
            return jax.lax.map(of_one, own)
        if size >= len(jax.tree.leaves(own)[0]):
            return jax.vmap(of_one)(own)
        return jax.lax.map(of_one, own, batch_size=size)

    def sharded(*args):
        split = len(args) - num_shared
        specs = (PartitionSpec(AXIS),) * split + (PartitionSpec(),) * num_shared
        return jax.shard_map(
            of_members,
            mesh=mesh or member_mesh(),
            in_specs=specs,
            out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )(*args)

    return jax.jit(sharded, donate_argnums=(0,) if donate else ())


@contextlib.contextmanager
def with_sentinels() -> Iterator[None]:
    """Let results hold NaN (not measured) and infinity (no candidate) on purpose.

    JAX's debugging checks for NaN and infinity still see all other results.
    """
    with jax.debug_nans(False), jax.debug_infs(False):
        yield


def member_mesh(devices_per_network: int = 1) -> Mesh:
    """Return the mesh of all local devices: `AXIS` divides the members, `PART` their batches."""
    devices = np.array(jax.local_devices())
    return Mesh(devices.reshape(-1, devices_per_network), (AXIS, PART))


def shard_members(tree: Any, mesh: Mesh | None = None) -> Any:
    """Place stacked leaves on the devices, split along the member axis."""
    return jax.device_put(tree, NamedSharding(mesh or member_mesh(), PartitionSpec(AXIS)))


def share(tree: Any) -> Any:
    """Replicate a tree that all members share on every device."""
    return jax.device_put(tree, NamedSharding(member_mesh(), PartitionSpec()))


def pad_members(members: Sequence[Member], places: int | None = None) -> list[Member]:
    """Return the members that this process trains, padded with copies of the last member.

    The padded number is a multiple of `places`, by default the number of devices. Each process gets
    the same number of members, in order. Copies are never reported.
    """
    num_here = -(-len(members) // jax.process_count())
    num_here += -num_here % (places or len(jax.local_devices()))
    padded = [*members, *[members[-1]] * (num_here * jax.process_count() - len(members))]
    start = jax.process_index() * num_here
    return padded[start : start + num_here]


def gather_members(tree: Any, num_members: int) -> Any:
    """Gather stacked leaves from all processes as NumPy arrays; every process must call this.

    Args:
      tree: leaves [M', ...] for the members that `pad_members` gave this process.
      num_members: the number M of members in all processes.

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
    """Return this process's part [M', ...] of stacked NumPy leaves [M, ...]; `num_here` is M'.

    This is the inverse of `gather_members`.
    """
    indices = np.arange(num_here) + jax.process_index() * num_here
    return jax.tree.map(lambda x: x[np.minimum(indices, len(x) - 1)], tree)


def take_member(tree: Any, index: int) -> Any:
    """Return one member's part of a stacked tree as NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(x[index]), tree)
