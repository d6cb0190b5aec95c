"""Calls outside of transformations: compiled once, and the same as inside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.losses import monitor
from normjax.normalize import log_product_norm, normalize_params, param_norms, product_norm
from tests.helpers.networks import mlp_params

FUNCTIONS = [normalize_params, param_norms, product_norm, log_product_norm]


@pytest.fixture
def compilations():
    """The durations of compilations, as they happen."""
    jax.clear_caches()  # another module may have compiled the same
    seen = []

    def listen(event, duration, **_):
        if "backend_compile" in event:
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.clear_event_listeners()


@pytest.mark.parametrize("norm", [2, "spectral"])
def test_a_second_call_compiles_nothing(compilations, norm):
    params = mlp_params([4, 5, 3])
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    logits, labels = jnp.ones((6, 3)), jnp.zeros(6, int)

    def call_all(params, stacked):
        for fn in FUNCTIONS:
            fn(params, norm)
            jax.vmap(lambda p, fn=fn: fn(p, norm))(stacked)
        monitor(params, logits, labels, norm)
        jax.grad(log_product_norm)(params, norm)

    call_all(params, stacked)
    assert compilations
    params, stacked = jax.tree.map(lambda leaf: leaf + 1, (params, stacked))
    compilations.clear()
    call_all(params, stacked)
    assert not compilations


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_eager_and_compiled_calls_agree(fn):
    params = mlp_params([4, 5, 3])
    for norm in (2, 1, "spectral", lambda leaves: jnp.sqrt(jnp.sum(leaves["kernel"] ** 2))):
        eager, compiled = fn(params, norm), jax.jit(lambda p, n=norm: fn(p, n))(params)
        assert jax.tree.structure(eager) == jax.tree.structure(compiled)
        for leaf, other in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
            np.testing.assert_allclose(leaf, other, rtol=2e-6)


def test_constants_of_a_transformed_function_are_normalized_there():
    params = jax.tree.map(np.asarray, mlp_params([4, 5, 3]))

    @jax.jit
    def scaled(factor):
        return factor * product_norm(params), normalize_params(params)

    product, normalized = scaled(2.0)
    np.testing.assert_allclose(product, 2 * product_norm(params), rtol=1e-6)
    assert np.array_equal(
        normalized["Dense_1"]["kernel"], normalize_params(params)["Dense_1"]["kernel"]
    )
    slope = jax.vmap(lambda factor: factor * product_norm(params))(jnp.ones(3))
    np.testing.assert_allclose(slope, [product_norm(params)] * 3, rtol=1e-6)


def test_a_norm_of_ones_own_need_not_be_traceable():
    def by_numpy(leaves):
        return jnp.float32(np.linalg.norm(np.asarray(leaves["kernel"])))

    params = mlp_params([4, 5, 3])
    norms = param_norms(params, by_numpy)
    np.testing.assert_allclose(norms["Dense_1"], param_norms(params)["Dense_1"], rtol=1e-6)
    normalize_params(params, by_numpy)
