"""Flatness of a trained network: how much noise its weights tolerate (PAC-Bayes measures).

Batch normalization is absorbed first, as in `measures`: the noise perturbs the weights of the
network that predicts. Otherwise batch normalization would cancel or amplify the noise.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp

from normjax.losses import classification_error
from normjax.types import ApplyFn, Array, Params

ERROR_RISE = 0.1  # as in Jiang et al. 2020
NUM_DRAWS = 20  # many draws on few images estimate sigma better than few draws on many images
NUM_STEPS = 8
SMALLEST, LARGEST = 1e-4, 10.0  # search range of sigma


def pac_bayes_flatness(
    apply_fn: ApplyFn, params: Params, x: Array, labels: Array, key: Array, **search: int
) -> Array:
    """Return `-2 ln sigma`, where noise N(0, sigma^2) on all weights raises the error by 0.1.

    A larger value (a sharper network) means a larger expected test error. Source: Jiang et al.
    2020, eq. 53, `1 / sigma^2`; Neyshabur et al., "Exploring Generalization in Deep Learning"
    (NeurIPS 2017). It is not invariant to rescaling of units. Batch normalization: absorbed; the
    noise is on kernels and biases.

    Args:
      apply_fn, params, x, labels, key, search: see `find_sigma`.

    Returns:
      A float32 scalar; NaN if no sigma was found.
    """
    return -2 * jnp.log(find_sigma(apply_fn, params, x, labels, key, is_relative=False, **search))


def pac_bayes_magnitude_flatness(
    apply_fn: ApplyFn, params: Params, x: Array, labels: Array, key: Array, **search: int
) -> Array:
    """Return `-2 ln sigma'`; noise N(0, sigma'^2 w^2) on all weights w raises the error by 0.1.

    A larger value (a sharper network) means a larger expected test error. Source: Jiang et al.
    2020, eq. 61, `1 / sigma'^2`, without the small constant added to w^2, which keeps their bound
    finite. Without it, the measure is invariant to all rescalings of units that keep the function.
    Batch normalization: absorbed; the noise is on kernels and biases.

    Args:
      apply_fn, params, x, labels, key, search: see `find_sigma`.

    Returns:
      A float32 scalar; NaN if no sigma' was found.
    """
    return -2 * jnp.log(find_sigma(apply_fn, params, x, labels, key, is_relative=True, **search))


SHARPNESS_MEASURES: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {f.__name__: f for f in (pac_bayes_flatness, pac_bayes_magnitude_flatness)}
)
"""Measures by name; each is jittable and has the orientation of `measures.MEASURES`."""


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
    """Find the size of Gaussian noise on the weights that raises the error by `error_rise`.

    The expected error is the mean over `num_draws` draws of noise. The draws are fixed and scaled
    by sigma, so the mean is almost smooth in sigma, and networks with the same key get the same
    noise. Bisection halves the interval of ln sigma `num_steps` times, to 0.05 by default, and the
    error is interpolated linearly in the final interval. The cost is `num_draws * num_steps + 1`
    forward passes of all examples.

    Args:
      apply_fn: pure function `(params, x) -> logits [batch, K]`.
      params: nested mapping of arrays, with batch normalization absorbed.
      x: inputs `[N, ...]` of `apply_fn`.
      labels: `[N]` integers.
      key: random key of the noise.
      is_relative: whether the noise on a weight is proportional to its magnitude.
      error_rise: increase of the error, a fraction.
      num_draws: number of noise draws.
      num_steps: bisection steps.
      batch_size: examples per forward pass.

    Returns:
      sigma, a float32 scalar; NaN if it is not between 1e-4 and 10.
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

    # The error at the initial ends is not evaluated; sigma is NaN unless both have moved.
    start = (jnp.log(jnp.array([SMALLEST, LARGEST], jnp.float32)), jnp.full(2, jnp.nan))
    ends, errors = jax.lax.fori_loop(0, num_steps, halve, start)
    return jnp.exp(ends[0] + jnp.diff(ends)[0] * (allowed - errors[0]) / jnp.diff(errors)[0])


def perturb(params: Params, key: Array, sigma: Array, *, is_relative: bool) -> Params:
    """Add Gaussian noise of standard deviation sigma, or sigma |w|, to every leaf."""
    leaves, treedef = jax.tree.flatten(params)
    noisy = []
    for leaf, own in zip(leaves, jax.random.split(key, len(leaves)), strict=True):
        leaf = jnp.asarray(leaf)
        noise = sigma * jax.random.normal(own, leaf.shape, leaf.dtype)
        noisy.append(leaf + (noise * jnp.abs(leaf) if is_relative else noise))
    return jax.tree.unflatten(treedef, noisy)


def _error(apply_fn, params, *, x, labels, batch_size):
    """Return the classification error over all examples, in batches."""
    num_examples = len(labels)
    num_batches = math.ceil(num_examples / batch_size)
    indices = jnp.arange(num_batches * batch_size).reshape(num_batches, batch_size)
    x, labels = jnp.asarray(x), jnp.asarray(labels)

    def num_wrong(index):
        chosen = jnp.minimum(index, num_examples - 1)
        wrong = classification_error(apply_fn(params, x[chosen]), labels[chosen])
        return jnp.sum(jnp.where(index < num_examples, wrong, 0))

    return jnp.sum(jax.lax.map(num_wrong, indices)) / num_examples
