"""Norms that are zero, negative or not finite, and arguments that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.normalize import log_product_norm, normalize_params, param_norms, product_norm
from tests.helpers.networks import NORMS, every_norm, mlp_float64, mlp_params


@every_norm
def test_a_layer_of_zeros_is_left_as_it_is_inside_jit(norm):
    @jax.jit
    def normalize_and_differentiate(params):
        def loss(params):
            normalized = normalize_params(params, **norm)
            return sum(leaf.sum() for leaf in jax.tree.leaves(normalized)), normalized

        gradient, normalized = jax.grad(loss, has_aux=True)(params)
        return normalized, product_norm(params, **norm), gradient

    x = np.random.default_rng(2).standard_normal((10, 4))
    for name in ("Dense_0", "Dense_1", "Dense_2"):
        params = mlp_params([4, 5, 5, 3])
        params[name]["kernel"] *= 0
        if name == "Dense_0":
            # The first layer's norm is that of kernel and bias together.
            params[name]["bias"] *= 0
        normalized, product, gradient = normalize_and_differentiate(params)
        np.testing.assert_allclose(
            float(product) * mlp_float64(normalized, x), mlp_float64(params, x), rtol=1e-5
        )
        assert np.all(normalized[name]["kernel"] == 0)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
        assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("norm", [NORMS["fro"], NORMS["spectral"], NORMS["callable"]])
@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0"), (np.nan, "nan"), (np.inf, "(inf|nan)"), (-np.inf, "(inf|nan)")]
)
def test_a_norm_that_is_not_positive_and_finite_is_an_error_outside_jit(norm, value, shown):
    params = mlp_params([4, 5, 5, 3])
    params["Dense_1"]["kernel"] = jnp.full((5, 5), value)
    fns = [normalize_params, product_norm, log_product_norm]
    if value == 0:
        assert param_norms(params, **norm)["Dense_1"] == 0
    else:
        fns.append(param_norms)
    for fn in fns:
        with pytest.raises(ValueError, match=rf"layer 'Dense_1' has norm {shown}"):
            fn(params, **norm)


def test_a_negative_norm_is_an_error():
    with pytest.raises(ValueError, match=r"layer 'Dense_0' has norm -1"):
        normalize_params(mlp_params([4, 3]), lambda leaves: jnp.float32(-1))


def test_nan_stays_in_its_layer_and_in_its_member():
    broken = mlp_params([4, 5, 3])
    broken["Dense_1"]["kernel"] = broken["Dense_1"]["kernel"].at[0, 0].set(jnp.nan)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), broken, mlp_params([4, 5, 3]))
    for products in (jax.vmap(product_norm)(stacked), jax.vmap(log_product_norm)(stacked)):
        assert np.isnan(products[0]) and np.isfinite(products[1])
    normalized = jax.jit(normalize_params)(broken)
    assert np.isfinite(normalized["Dense_0"]["kernel"]).all()
    assert np.isnan(normalized["Dense_1"]["kernel"]).all()


@pytest.mark.parametrize("fn", [normalize_params, param_norms, product_norm, log_product_norm])
def test_bad_arguments_are_refused(fn):
    params = mlp_params([4, 3])
    for norm in ("l2", True, np.True_):
        with pytest.raises(ValueError, match="norm must be"):
            fn(params, norm)
    with pytest.raises(ValueError, match="scale must be"):
        fn(params, scale=0)
    with pytest.raises(ValueError, match="layers must name each"):
        fn(params, layers=["Dense_7"])
    for layers in ("Dense_0", 5, [1]):
        with pytest.raises(ValueError, match="layers must be a sequence of paths, not"):
            fn(params, layers=layers)
    with pytest.raises(ValueError, match=r"params must be arrays; .* use jax.eval_shape"):
        fn(jax.eval_shape(lambda: params))
    with pytest.raises(ValueError, match=r"'Embed_0/embedding' is not part of a layer"):
        fn({**params, "Embed_0": {"embedding": jnp.ones((3, 3))}})
    with pytest.raises(ValueError, match="tied must be 'refuse' or 'keep'"):
        fn(params, tied="drop")
