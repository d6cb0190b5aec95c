"""Flatness, against networks whose error under noise is known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from normjax.generalization import sharpness
from tests.helpers.networks import Mlp, apply_fn, mlp_params


def linear(params, x):
    """Two logits, x w and 0: the label 0 is right where x w > 0."""
    score = x @ params["kernel"]
    return jnp.concatenate([score, jnp.zeros_like(score)], axis=-1)


def one_weight(size):
    """Many weights of one size, each seen alone by one example, which is right while it is > 0."""
    num = 4000
    params = {"kernel": jnp.full((num, 1), size, jnp.float32)}
    return params, jnp.arange(num), jnp.zeros(num, jnp.int32)


def look_up(params, index):
    score = params["kernel"][index]
    return jnp.concatenate([score, jnp.zeros_like(score)], axis=-1)


@pytest.mark.parametrize(("size", "is_relative"), [(0.01, False), (0.7, False), (0.02, True)])
def test_sigma_in_closed_form(size, is_relative):
    """An example is wrong where w + sigma e < 0: with probability Phi(-w / sigma)."""
    params, x, labels = one_weight(size)
    find = functools.partial(sharpness.find_sigma, look_up, batch_size=1000)
    sigma = jax.jit(functools.partial(find, is_relative=is_relative))(
        params, x, labels, jax.random.key(0)
    )
    expected = -1 / stats.norm.ppf(0.1) * (1 if is_relative else size)
    # 80,000 Bernoulli draws: the error 0.1 is known to 0.001, ln sigma to 0.001 / 0.225 (1 s.d.).
    assert float(sigma) == pytest.approx(expected, rel=0.02)


def test_rise_is_above_the_error_without_noise():
    """A third of the examples is wrong from the start and stays so: its weights are far below 0."""
    params, x, labels = one_weight(0.05)
    params = {"kernel": params["kernel"].at[::4].set(-1e3)}
    sigma = sharpness.find_sigma(
        look_up, params, x, labels, jax.random.key(1), is_relative=False, batch_size=999
    )
    # 3/4 Phi(-w / sigma) = 0.1; batches of 999 leave a last one of 4.
    assert float(sigma) == pytest.approx(-0.05 / stats.norm.ppf(0.4 / 3), rel=0.02)


def test_measures_are_minus_two_ln_sigma():
    params, x, labels = one_weight(0.05)
    key = jax.random.key(0)
    for name, is_relative in (
        ("pac_bayes_flatness", False),
        ("pac_bayes_magnitude_flatness", True),
    ):
        search = {"num_draws": 2, "num_steps": 7, "batch_size": 1000}
        find = functools.partial(sharpness.find_sigma, look_up, is_relative=is_relative, **search)
        sigma = jax.jit(find)(params, x, labels, key)
        measure = functools.partial(sharpness.SHARPNESS_MEASURES[name], look_up, **search)
        value = jax.jit(measure)(params, x, labels, key)
        np.testing.assert_allclose(value, -2 * np.log(sigma), rtol=1e-6)
        assert np.isfinite(value)


def test_relative_noise_does_not_see_rescaled_units():
    """The function is the same, and so is its flatness; absolute noise tells the two apart."""
    model = Mlp((12, 3))
    params = mlp_params((6, 12, 3))
    scales = np.exp(np.random.default_rng(3).normal(0, 2, 12)).astype(np.float32)
    first, second = params["Dense_0"], params["Dense_1"]
    rescaled = {
        "Dense_0": {name: np.asarray(leaf) * scales for name, leaf in first.items()},
        "Dense_1": {**second, "kernel": second["kernel"] / scales[:, None]},
    }
    x = np.random.default_rng(0).standard_normal((200, 6)).astype(np.float32)
    labels = np.asarray(apply_fn(model)(params, x)).argmax(-1).astype(np.int32)

    @functools.partial(jax.jit, static_argnames="is_relative")
    def sigma(params, is_relative):
        key = jax.random.key(0)
        return sharpness.find_sigma(
            apply_fn(model), params, x, labels, key, is_relative=is_relative
        )

    same = [float(sigma(p, is_relative=True)) for p in (params, rescaled)]
    other = [float(sigma(p, is_relative=False)) for p in (params, rescaled)]
    assert same[0] == pytest.approx(same[1], rel=0.02) and 0.05 < same[0] < 1
    assert abs(np.log(other[0] / other[1])) > 0.5


def test_noise_has_the_size_that_is_asked_for():
    params = {"a": {"kernel": jnp.full((300, 200), -3.0), "bias": jnp.zeros(200)}}
    for is_relative, deviation in ((False, 0.1), (True, 0.3)):
        noisy = sharpness.perturb(params, jax.random.key(0), 0.1, is_relative=is_relative)
        change = np.asarray(noisy["a"]["kernel"]) + 3
        assert change.std() == pytest.approx(deviation, rel=0.02)
        assert abs(change.mean()) < 4 * deviation / np.sqrt(change.size)
    assert (np.asarray(noisy["a"]["bias"]) == 0).all()


def test_no_sigma_is_found_where_there_is_none():
    """Two classes of which one never loses: noise changes nothing."""
    params, x, labels = {"kernel": jnp.ones((5, 1))}, jnp.zeros((40, 5)), jnp.zeros(40, jnp.int32)
    sigma = sharpness.find_sigma(linear, params, x, labels, jax.random.key(0), is_relative=False)
    assert np.isnan(sigma)
