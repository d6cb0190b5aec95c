"""Training, evaluation and normalization with normjax, as in the experiments."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.synthetic import NUM_CLASSES, make_data
from benchmarks.timing import Prepared
from normjax import (
    classification_error,
    cross_entropy,
    monitor,
    normalize_params,
    standardize_images,
)
from normjax.networks.classifier import make_classifier
from normjax.networks.models import make_model
from normjax.norms import parse_norm
from normjax.training.ensemble import (
    Ensemble,
    Member,
    make_ensemble,
    make_order_key,
    map_members,
    pad_members,
    shard_members,
    share,
)
from normjax.training.evaluate import choose_evaluation_batch_size
from normjax.training.plan import divide_batches
from normjax.training.processes import prepare_cpu
from normjax.training.strategies import STRATEGIES, use_strategy

IMAGE_SHAPE = (32, 32, 3)
LAYERS = ("Conv_0", "Conv_1", "Dense_0")  # of the 3-layer net
NORMS = ("2", "1", "inf", "1/100", "3", "1.5", "4", "spectral")


class Networks(NamedTuple):
    """Stacked networks and their data, placed on the devices."""

    ensemble: Ensemble
    state: Any
    labels: jax.Array  # [M, N]
    images: jax.Array  # uint8 [N, H, W, C]


def make_networks(
    model: str | nn.Module,
    members: int,
    batch_size: int,
    num_images: int,
    strategy: str | None = None,
    matmul_precision: str = "default",
    is_shared: bool = False,
) -> Networks:
    """Initialize networks as in an experiment; convnet5 has batch normalization.

    The number of networks is `members`, rounded up to a multiple of the number of devices, unless
    `is_shared`: then all devices train one network after another, each on a part of every batch.
    The strategy is that of the platform without timing, unless one is given.
    """
    prepare_cpu()
    devices_per_network = jax.local_device_count() if is_shared else 1
    images, labels = make_data(num_images, IMAGE_SHAPE)
    net = model
    if isinstance(model, str):
        net = make_model(model, NUM_CLASSES, batch_norm=model == "convnet5")
    classifier = make_classifier(net, IMAGE_SHAPE, NUM_CLASSES)
    if devices_per_network > 1:
        classifier = divide_batches(classifier, IMAGE_SHAPE, batch_size, devices_per_network)
    ensemble = make_ensemble(
        use_strategy(classifier, IMAGE_SHAPE, strategy) if strategy else classifier,
        optax.sgd(0.01, momentum=0.9),
        batch_size=batch_size,
        target_losses=(0.01,),
        norms=[parse_norm(name) for name in NORMS],
        matmul_precision=matmul_precision,
        at_once=STRATEGIES[strategy].at_once if strategy else None,
        devices_per_network=devices_per_network,
    )
    place = partial(shard_members, mesh=ensemble.mesh)
    networks = [Member(i, i, "default_init", 0.0) for i in range(members)]
    padded = pad_members(networks, ensemble.places)
    state = ensemble.init(place(jnp.stack([member.key(0) for member in padded])), None)
    labels = place(np.broadcast_to(labels, (len(padded), num_images)))
    return Networks(ensemble, state, labels, share(images))


def compile_for(fn: Callable, *args: Any) -> tuple[Callable, float]:
    """Compile a jitted function for these arguments; return it and the compilation time."""
    started = time.perf_counter()
    compiled = fn.lower(*args).compile()
    return compiled, time.perf_counter() - started


def prepare_train(
    model: str, members: int, batch_size: int, num_images: int, is_shared: bool = False
) -> Prepared:
    """Prepare an epoch of `num_images` for all members; work counts network-steps."""
    networks = make_networks(model, members, batch_size, num_images, is_shared=is_shared)
    return prepare_steps(networks, members, math.ceil(num_images / batch_size))[0]


def prepare_steps(networks: Networks, members: int, num_steps: int) -> tuple[Prepared, Any]:
    """Prepare an epoch of `num_steps` steps; also return its compiled program."""
    state, data = networks.state, (networks.labels, networks.images, share(make_order_key(0)))
    train_epoch, compile_s = compile_for(networks.ensemble.train_epoch, state, *data)

    def call():
        nonlocal state
        state, metrics = jax.block_until_ready(train_epoch(state, *data))
        return metrics.loss[:members]

    return Prepared(call, members * num_steps, compile_s), train_epoch


def prepare_evaluate(model: str, members: int, num_images: int) -> Prepared:
    """Prepare an evaluation of all members under all of `NORMS`; work counts networks."""
    networks = make_networks(model, members, 128, num_images)
    args = (networks.state.variables, networks.labels, networks.images)
    evaluate, compile_s = compile_for(networks.ensemble.evaluate, *args)
    return Prepared(lambda: jax.block_until_ready(evaluate(*args)), members, compile_s)


def prepare_plain_pass(model: str, members: int, num_images: int) -> Prepared:
    """Prepare a pass over the same networks and batches that only computes loss and error."""
    networks = make_networks(model, members, 128, num_images)
    net = make_model(model, NUM_CLASSES)
    batch_size = choose_evaluation_batch_size()
    fill = -num_images % batch_size
    indices = jnp.pad(jnp.arange(num_images), (0, fill)).reshape(-1, batch_size)
    weights = (jnp.arange(num_images + fill) < num_images).astype(jnp.float32)

    def plain_pass(variables, labels, images):
        def batch_sums(index_and_weight):
            index, weight = index_and_weight
            logits = net.apply(variables, standardize_images(images[index]))
            loss = cross_entropy(logits, labels[index])
            error = classification_error(logits, labels[index])
            return jnp.sum(weight * loss), jnp.sum(weight * error)

        with jax.default_matmul_precision("highest"):
            return jax.lax.map(batch_sums, (indices, weights.reshape(-1, batch_size)))

    args = (networks.state.variables, networks.labels, networks.images)
    plain, compile_s = compile_for(map_members(plain_pass, num_shared=1), *args)
    return Prepared(lambda: jax.block_until_ready(plain(*args)), members, compile_s)


def prepare_monitor(num_examples: int, calls: int) -> Prepared:
    """Prepare `calls` calls of `monitor` for the 3-layer net, with `num_examples` logits."""
    params = draw_convnet3(())
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(num_examples, NUM_CLASSES)), jnp.float32)
    labels = jnp.asarray(rng.integers(NUM_CLASSES, size=num_examples))
    monitored, compile_s = compile_for(
        jax.jit(partial(monitor, layers=LAYERS)), params, logits, labels
    )

    def call():
        for _ in range(calls):
            seen = jax.block_until_ready(monitored(params, logits, labels))
        return seen

    return Prepared(call, 1, compile_s)


def prepare_normalize(members: int, repeats: int) -> Prepared:
    """Prepare compiled `normalize_params` of the 3-layer net, for one network or many at once."""
    normalize = partial(normalize_params, layers=LAYERS)
    if members == 1:
        answer_directly()
        params, fn = draw_convnet3(()), jax.jit(normalize)
    else:
        prepare_cpu()
        params, fn = shard_members(draw_convnet3((members,))), map_members(normalize)
    compiled, compile_s = compile_for(fn, params)
    return Prepared(_repeat(compiled, params, repeats), members * repeats, compile_s)


def prepare_normalize_eager(repeats: int, by_numpy: bool) -> Prepared:
    """Prepare plain calls of `normalize_params` of the 3-layer net, one network at a time."""
    answer_directly()
    params = draw_convnet3(())
    if by_numpy:
        params = jax.tree.map(np.asarray, params)
    call = _repeat(partial(normalize_params, layers=LAYERS), params, repeats)
    started = time.perf_counter()
    call()
    return Prepared(call, repeats, time.perf_counter() - started)


def answer_directly() -> None:
    """Make JAX compute in the calling thread, which suits short calls; set it before JAX runs."""
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def _repeat(fn: Callable[[Any], Any], argument: Any, repeats: int) -> Callable[[], Any]:
    def call():
        for _ in range(repeats):
            result = jax.block_until_ready(fn(argument))
        return result

    return call


def draw_convnet3(stack: tuple[int, ...]) -> Any:
    """Draw parameters of the 3-layer net from N(0, 0.1^2), with leading axes `stack`."""
    net = make_model("convnet3", NUM_CLASSES)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *IMAGE_SHAPE)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.1, (*stack, *leaf.shape)), jnp.float32), shapes
    )
