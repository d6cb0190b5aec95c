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


@pytest.mark.slow
def test_all_are_measured_at_once():
    params, x, labels = one_weight(0.05)
    search = {"num_steps": 7, "batch_size": 1000}
    measure = functools.partial(sharpness.measure_sharpness, look_up, num_draws=2, **search)
    found = jax.jit(measure)(params, x, labels, jax.random.key(0))
    expected = []
    for is_relative in (False, True):
        find = functools.partial(sharpness.find_sigma, look_up, num_draws=2, **search)
        find = jax.jit(functools.partial(find, is_relative=is_relative))
        expected.append(find(params, x, labels, jax.random.key(0)))
    for is_relative in (False, True):
        find = functools.partial(sharpness.find_alpha, look_up, is_relative=is_relative, **search)
        expected.append(jax.jit(find)(params, x, labels))
    for radius, is_adaptive in ((0.05, False), (0.5, True)):
        rise = functools.partial(sharpness.loss_rise, look_up, batch_size=1000, radius=radius)
        expected.append(
            jax.jit(functools.partial(rise, is_adaptive=is_adaptive))(params, x, labels)
        )
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert np.isnan(found.relative_alpha) and np.isfinite(found[:3]).all()


@pytest.mark.parametrize(("size", "is_relative"), [(0.01, False), (0.7, False), (0.02, True)])
def test_alpha_in_closed_form(size, is_relative):
    """A fifth of the examples has a tenth of the weight: they turn wrong first, all at once."""
    params, x, labels = one_weight(size)
    params = {"kernel": params["kernel"].at[::5].set(size / 10)}
    find = functools.partial(sharpness.find_alpha, look_up, is_relative=is_relative)
    alpha = jax.jit(functools.partial(find, batch_size=1000, num_steps=14))(params, x, labels)
    # In a relative box, every weight reaches 0 at alpha = 1, where the search ends.
    expected = np.nan if is_relative else size / 10
    np.testing.assert_allclose(alpha, expected, rtol=0.02)


def test_a_relative_box_is_a_box_in_units_of_the_weights():
    """Two weights per example: the sum changes sign where alpha (a + b) = a - b."""
    large, small = np.full(4000, 3.0), np.full(4000, 1.0)
    small[::4] = 2.0

    def difference(params, index):
        score = (params["a"][index] - params["b"][index])[:, None]
        return jnp.concatenate([score, jnp.zeros_like(score)], axis=-1)

    params = {"a": jnp.asarray(large, jnp.float32), "b": jnp.asarray(small, jnp.float32)}
    alpha = sharpness.find_alpha(
        difference,
        params,
        jnp.arange(4000),
        jnp.zeros(4000, jnp.int32),
        is_relative=True,
        num_steps=14,
        batch_size=1000,
    )
    # A quarter of the examples is wrong beyond (3 - 2) / (3 + 2).
    assert float(alpha) == pytest.approx(0.2, rel=0.02)


def test_loss_rise_against_pytorch():
    """The step of SAM and of its adaptive form, on an MLP in float64."""
    torch = pytest.importorskip("torch")
    params = jax.tree.map(lambda w: 0.3 * w, mlp_params((6, 12, 3)))
    x = np.random.default_rng(1).standard_normal((70, 6)).astype(np.float32)
    labels = np.arange(70) % 3
    weights = {
        f"{layer}/{leaf}": torch.tensor(np.asarray(w), dtype=torch.float64, requires_grad=True)
        for layer, leaves in params.items()
        for leaf, w in leaves.items()
    }

    def loss_of(weights):
        h = torch.tensor(x, dtype=torch.float64)
        h = torch.relu(h @ weights["Dense_0/kernel"] + weights["Dense_0/bias"])
        logits = h @ weights["Dense_1/kernel"] + weights["Dense_1/bias"]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(labels))

    loss = loss_of(weights)
    gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    for radius, is_adaptive in ((0.05, False), (0.5, True)):
        unit = {
            name: w.abs() + 0.01 if is_adaptive and "kernel" in name else torch.ones_like(w)
            for name, w in weights.items()
        }
        length = sum(((unit[k] * g) ** 2).sum() for k, g in gradients.items()).sqrt()
        moved = {
            name: w + radius * unit[name] ** 2 * gradients[name] / length
            for name, w in weights.items()
        }
        expected = (loss_of(moved) - loss).item()
        rise = functools.partial(sharpness.loss_rise, apply_fn(Mlp((12, 3))), batch_size=16)
        rise = functools.partial(rise, radius=radius, is_adaptive=is_adaptive)
        found = jax.jit(rise)(params, x, labels)
        assert float(found) == pytest.approx(expected, rel=1e-4) and expected > 0


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
