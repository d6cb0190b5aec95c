"""Flatness of a trained network: how much noise, and how much ascent, its weights tolerate.

Batch normalization is absorbed first, as in `measures`: the weights that move are those of the
network that predicts. Otherwise batch normalization would cancel or amplify the noise. The measures
that use these numbers are in `pac_bayes`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from normjax.losses import classification_error, cross_entropy
from normjax.training.ensemble import with_sentinels
from normjax.types import ApplyFn, Array

ERROR_RISE = 0.1  # as in Jiang et al. 2020
NUM_DRAWS = 20  # many draws on few images estimate sigma better than few draws on many images
NUM_ASCENTS = 5
NUM_STEPS = 8
NOISE_RANGE = 1e-4, 10.0  # where sigma is searched
BOX_RANGE = 1e-6, 1.0  # where alpha is searched
SAM_RADIUS = 0.05  # default of Foret et al. 2021
ADAPTIVE_RADIUS = 0.5  # default of the public code of Kwon et al. 2021
ADAPTIVE_OFFSET = 0.01  # eta, likewise


class Sharpness(NamedTuple):
    """What noise and ascent do to a network; NaN if a size is not in the range of the search.

    Attributes:
      sigma: noise N(0, sigma^2) on all weights raises the error by 0.1.
      relative_sigma: noise N(0, sigma^2 w^2) on all weights w raises the error by 0.1.
      alpha: the worst change of all weights by at most alpha raises the error by 0.1.
      relative_alpha: the worst change of all weights w by at most alpha |w| raises it by 0.1.
      loss_rise: rise of the mean cross entropy, in nats, after a step of length 0.05 uphill.
      adaptive_loss_rise: the same for a step of length 0.5 in units of the weights' magnitudes.
    """

    sigma: Any
    relative_sigma: Any
    alpha: Any
    relative_alpha: Any
    loss_rise: Any
    adaptive_loss_rise: Any


def measure_sharpness(
    apply_fn: ApplyFn, params: Any, x: Array, labels: Array, key: Array, **search: int
) -> Sharpness:
    """Measure the sharpness of a network on a few examples; jittable.

    Args:
      apply_fn, params, x, labels, key, search: see `find_sigma`.

    Returns:
      float32 scalars.
    """
    find_noise = partial(find_sigma, apply_fn, params, x, labels, key, **search)
    search = {name: value for name, value in search.items() if name != "num_draws"}
    find_box = partial(find_alpha, apply_fn, params, x, labels, **search)
    rise = partial(loss_rise, apply_fn, params, x, labels, search.get("batch_size", 16))
    return Sharpness(
        find_noise(is_relative=False),
        find_noise(is_relative=True),
        find_box(is_relative=False),
        find_box(is_relative=True),
        rise(SAM_RADIUS, is_adaptive=False),
        rise(ADAPTIVE_RADIUS, is_adaptive=True),
    )


def find_sigma(
    apply_fn: ApplyFn,
    params: Any,
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
      params: any tree of arrays, with batch normalization absorbed.
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
    keys = jax.random.split(key, num_draws)

    def mean_error(sigma):
        def of_draw(key):
            return error_of(perturb(params, key, sigma, is_relative=is_relative))

        return jnp.mean(jax.lax.map(of_draw, keys))

    return _bisect(mean_error, error_of(params) + error_rise, NOISE_RANGE, num_steps)


def find_alpha(
    apply_fn: ApplyFn,
    params: Any,
    x: Array,
    labels: Array,
    *,
    is_relative: bool,
    error_rise: float = ERROR_RISE,
    num_ascents: int = NUM_ASCENTS,
    num_steps: int = NUM_STEPS,
    batch_size: int = 16,
) -> Array:
    """Find the size of a box around the weights whose worst point raises the error by `error_rise`.

    The worst point is sought by `num_ascents` steps along the sign of the gradient of the cross
    entropy, each half the box's size and clipped to the box; the worst error of all steps counts.
    That underestimates the worst error in the box, and so overestimates alpha. The search is that
    of `find_sigma`; the cost is about `4 * num_ascents * num_steps` forward passes.

    Args:
      apply_fn, params, x, labels, error_rise, num_steps, batch_size: see `find_sigma`.
      is_relative: whether the box is proportional to the magnitude of each weight.
      num_ascents: steps of the ascent.

    Returns:
      alpha, a float32 scalar; NaN if it is not between 1e-6 and 1.
    """
    error_of = partial(_error, apply_fn, x=x, labels=labels, batch_size=batch_size)
    gradient_of = partial(_gradient, apply_fn, x=x, labels=labels, batch_size=batch_size)

    def worst_error(alpha):
        sizes = jax.tree.map(lambda w: alpha * (jnp.abs(w) if is_relative else 1), params)

        def climb(carry, _):
            place, worst = carry

            def move(w, start, gradient, size):
                return jnp.clip(w + size / 2 * jnp.sign(gradient), start - size, start + size)

            place = jax.tree.map(move, place, params, gradient_of(place), sizes)
            return (place, jnp.maximum(worst, error_of(place))), None

        start = (jax.tree.map(jnp.asarray, params), jnp.float32(0))
        return jax.lax.scan(climb, start, length=num_ascents)[0][1]

    return _bisect(worst_error, error_of(params) + error_rise, BOX_RANGE, num_steps)


def loss_rise(
    apply_fn: ApplyFn,
    params: Any,
    x: Array,
    labels: Array,
    batch_size: int,
    radius: float,
    *,
    is_adaptive: bool,
) -> Array:
    """Return the rise of the mean cross entropy, in nats, after one step uphill.

    With the gradient g, the step is `radius * T^2 g / ||T g||`. T is 1, or `|w| + 0.01` for kernels
    and 1 for biases if `is_adaptive`.

    Args:
      apply_fn, params, x, labels, batch_size: see `find_sigma`.
      radius: length of the step.
      is_adaptive: whether the step is measured in units of the kernels' magnitudes.
    """
    loss_of = partial(_loss, apply_fn, x=x, labels=labels, batch_size=batch_size)
    gradient = _gradient(apply_fn, params, x=x, labels=labels, batch_size=batch_size)

    def unit(w):
        return jnp.abs(w) + ADAPTIVE_OFFSET if is_adaptive and jnp.ndim(w) > 1 else jnp.ones(())

    scaled = jax.tree.map(lambda w, g: unit(w) * g, params, gradient)
    length = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(scaled)))
    moved = jax.tree.map(lambda w, g: w + radius * unit(w) * g / length, params, scaled)
    return loss_of(moved) - loss_of(params)


def perturb(params: Any, key: Array, sigma: Array, *, is_relative: bool) -> Any:
    """Add Gaussian noise of standard deviation sigma, or sigma |w|, to every leaf."""
    leaves, treedef = jax.tree.flatten(params)
    noisy = []
    for leaf, own in zip(leaves, jax.random.split(key, len(leaves)), strict=True):
        leaf = jnp.asarray(leaf)
        noise = sigma * jax.random.normal(own, leaf.shape, leaf.dtype)
        noisy.append(leaf + (noise * jnp.abs(leaf) if is_relative else noise))
    return jax.tree.unflatten(treedef, noisy)


def _bisect(
    error_at: Callable[[Array], Array], allowed: Array, bounds: tuple[float, float], num_steps: int
) -> Array:
    """Return the size at which the error is the allowed one, or NaN if it is not in the bounds."""

    def halve(_, bracket):
        ends, errors = bracket
        middle = jnp.mean(ends)
        error = error_at(jnp.exp(middle))
        side = (error > allowed).astype(jnp.int32)
        return ends.at[side].set(middle), errors.at[side].set(error)

    # The error at the initial ends is not evaluated; the result is NaN unless both have moved.
    with with_sentinels():
        start = (jnp.log(jnp.array(bounds, jnp.float32)), jnp.full(2, jnp.nan))
        ends, errors = jax.lax.fori_loop(0, num_steps, halve, start)
        return jnp.exp(ends[0] + jnp.diff(ends)[0] * (allowed - errors[0]) / jnp.diff(errors)[0])


def _error(apply_fn, params, *, x, labels, batch_size):
    """Return the classification error over all examples."""
    return _mean_over(apply_fn, classification_error, x, labels, batch_size)(params)


def _loss(apply_fn, params, *, x, labels, batch_size):
    """Return the mean cross entropy over all examples, in nats."""
    return _mean_over(apply_fn, cross_entropy, x, labels, batch_size)(params)


def _gradient(apply_fn, params, *, x, labels, batch_size):
    """Return the gradient of the mean cross entropy."""
    return jax.grad(_mean_over(apply_fn, cross_entropy, x, labels, batch_size))(params)


def _mean_over(apply_fn, function, x, labels, batch_size):
    """Return a function of the parameters: the mean over all examples, in batches."""
    num_examples = len(labels)
    num_batches = math.ceil(num_examples / batch_size)
    indices = jnp.arange(num_batches * batch_size).reshape(num_batches, batch_size)
    x, labels = jnp.asarray(x), jnp.asarray(labels)

    def of(params):
        def of_batch(index):
            chosen = jnp.minimum(index, num_examples - 1)
            values = function(apply_fn(params, x[chosen]), labels[chosen])
            return jnp.sum(jnp.where(index < num_examples, values, 0))

        return jnp.sum(jax.lax.map(of_batch, indices)) / num_examples

    return of
