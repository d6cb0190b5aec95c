"""Flatness of a trained network: how much noise its weights bear (PAC-Bayes measures).

Batch normalization is absorbed first, as in `measures`: the noise is on the weights of the network
that predicts, and its size is relative to theirs. Noise on the raw weights below a batch
normalization would be undone or blown up by it.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp

from normjax.losses import classification_error
from normjax.types import ApplyFn, Array, Params

ERROR_RISE = 0.1  # as Jiang et al. 2020 take it
NUM_DRAWS = 20  # many draws on few images know sigma better than few draws on many
NUM_STEPS = 8
SMALLEST, LARGEST = 1e-4, 10.0  # sigma is looked for between these


def pac_bayes_flatness(
    apply_fn: ApplyFn, params: Params, x: Array, labels: Array, key: Array, **search: int
) -> Array:
    """``-2 ln sigma``, where noise N(0, sigma^2) on every weight raises the error by 0.1.

    The larger (the sharper), the larger the test error that is expected. Source: Jiang et al. 2020,
    eq. 53, ``1 / sigma^2``; Neyshabur et al., "Exploring Generalization in Deep Learning" (NeurIPS
    2017). It changes when a unit's weights are rescaled, though the function does not.
    Batch normalization: absorbed; the noise is on kernels and biases.

    Args:
        apply_fn, params, x, labels, key, search: see ``find_sigma``.

    Returns:
        A float32 scalar; NaN where no sigma was found.
    """
    return -2 * jnp.log(find_sigma(apply_fn, params, x, labels, key, is_relative=False, **search))


def pac_bayes_magnitude_flatness(
    apply_fn: ApplyFn, params: Params, x: Array, labels: Array, key: Array, **search: int
) -> Array:
    """``-2 ln sigma'``, where noise N(0, sigma'^2 w^2) on every weight w raises the error by 0.1.

    The larger (the sharper), the larger the test error that is expected. Source: Jiang et al. 2020,
    eq. 61, ``1 / sigma'^2``. Their
    small constant beside w^2 is left out: it keeps a bound finite, which is not needed here, and
    without it the measure is the same for all rescalings of units that leave the function as it
    is. Batch normalization: absorbed; the noise is on kernels and biases.

    Args:
        apply_fn, params, x, labels, key, search: see ``find_sigma``.

    Returns:
        A float32 scalar; NaN where no sigma' was found.
    """
    return -2 * jnp.log(find_sigma(apply_fn, params, x, labels, key, is_relative=True, **search))


SHARPNESS_MEASURES: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {f.__name__: f for f in (pac_bayes_flatness, pac_bayes_magnitude_flatness)}
)
"""Measures by name; each is jittable, and oriented as those of `measures.MEASURES`."""


def find_sigma(
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    labels: Array,
    key: Array,
    *,
    is_relative: bool,
    error_rise: float = ERROR_RISE,
    num_draws: int = NUM_DRAWS,
    num_steps: int = NUM_STEPS,
    batch_size: int = 16,
) -> Array:
    """The size of Gaussian noise on the weights that raises the classification error by so much.

    The expected error is the mean over ``num_draws`` draws of noise. These are drawn once and
    multiplied by sigma, so that the mean changes with sigma almost steadily, and networks that are
    given one key meet the same noise. The interval of ln sigma is halved ``num_steps`` times, to
    0.05 by default, and within what is left the error is taken to be linear. The cost is
    ``num_draws * num_steps + 1`` forward passes of all examples.

    Args:
        apply_fn: pure function ``(params, x) -> logits [batch, K]``.
        params: nested mapping of arrays, batch normalization absorbed.
        x: inputs ``[N, ...]``, as ``apply_fn`` takes them.
        labels: ``[N]`` integers.
        key: of the noise.
        is_relative: the noise on a weight is sigma times its magnitude; else sigma.
        error_rise: how much larger the error is with noise than without, a fraction.
        num_draws: draws of noise.
        num_steps: steps of bisection.
        batch_size: examples in a forward pass.

    Returns:
        sigma, a float32 scalar; NaN where it is not found between 1e-4 and 10.
    """
    error_of = partial(_error, apply_fn, x=x, labels=labels, batch_size=batch_size)
    allowed = error_of(params) + error_rise
    keys = jax.random.split(key, num_draws)

    def mean_error(log_sigma):
        def of_draw(key):
            return error_of(perturb(params, key, jnp.exp(log_sigma), is_relative=is_relative))

        return jnp.mean(jax.lax.map(of_draw, keys))

    def halve(_, bracket):
        ends, errors = bracket
        middle = jnp.mean(ends)
        error = mean_error(middle)
        side = (error > allowed).astype(jnp.int32)
        return ends.at[side].set(middle), errors.at[side].set(error)

    # The ends themselves are not measured: both must have been moved inwards.
    start = (jnp.log(jnp.array([SMALLEST, LARGEST], jnp.float32)), jnp.full(2, jnp.nan))
    ends, errors = jax.lax.fori_loop(0, num_steps, halve, start)
    return jnp.exp(ends[0] + jnp.diff(ends)[0] * (allowed - errors[0]) / jnp.diff(errors)[0])


def perturb(params: Params, key: Array, sigma: Array, *, is_relative: bool) -> Params:
    """Adds Gaussian noise to every leaf, of standard deviation sigma, or sigma times each |w|."""
    leaves, treedef = jax.tree.flatten(params)
    noisy = []
    for leaf, own in zip(leaves, jax.random.split(key, len(leaves)), strict=True):
        leaf = jnp.asarray(leaf)
        noise = sigma * jax.random.normal(own, leaf.shape, leaf.dtype)
        noisy.append(leaf + (noise * jnp.abs(leaf) if is_relative else noise))
    return jax.tree.unflatten(treedef, noisy)


def _error(apply_fn, params, *, x, labels, batch_size):
    """The classification error over all examples, a batch at a time."""
    num_examples = len(labels)
    num_batches = math.ceil(num_examples / batch_size)
    indices = jnp.arange(num_batches * batch_size).reshape(num_batches, batch_size)
    x, labels = jnp.asarray(x), jnp.asarray(labels)

    def num_wrong(index):
        chosen = jnp.minimum(index, num_examples - 1)
        wrong = classification_error(apply_fn(params, x[chosen]), labels[chosen])
        return jnp.sum(jnp.where(index < num_examples, wrong, 0))

    return jnp.sum(jax.lax.map(num_wrong, indices)) / num_examples
