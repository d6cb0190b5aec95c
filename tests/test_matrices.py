"""The matrices of layers, whatever the layout of their kernels, and their norms."""

import dataclasses
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.exponents import Leaf
from normjax.matrices import arrange, flax_layout, layer_matrix, restore
from normjax.normalize import log_product_norm, normalize_params, param_norms, product_norm
from normjax.structure import LayerMatrix, Layout, NetworkStructure


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def structure_of(leaves, *matrices, divisors=None):
    """A certified structure of a list of leaves."""
    if divisors is None:
        divisors = [(layer.kernel, ((k, 1),)) for k, layer in enumerate(matrices)]
    named = tuple((str(i), leaf.shape) for i, leaf in enumerate(leaves))
    return NetworkStructure(named, matrices, tuple(divisors))


def norm_of(leaves, layer, **norm):
    (value,) = param_norms(leaves, structure=structure_of(leaves, layer), **norm).values()
    return value


LAYOUTS = {
    "HWIO": (Layout((0, 1), (2,), (3,)), (0, 1, 2, 3)),
    "OIHW": (Layout((2, 3), (1,), (0,)), (3, 2, 0, 1)),
    "IHWO": (Layout((1, 2), (0,), (3,)), (2, 0, 1, 3)),
    "several inputs": (Layout((0, 1), (2, 3), (4,)), None),
    "several outputs": (Layout((0, 1), (2,), (3, 4)), None),
    "an axis of size 1": (Layout((0, 1), (2,), (4,)), None),
}


@pytest.mark.parametrize("norm", [{}, {"norm": "spectral"}])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_has_the_same_norm(name, norm):
    kernel, bias = normal(3, 2, 4, 6), normal(6, seed=1)
    layout, order = LAYOUTS[name]
    shapes = {
        "several inputs": (3, 2, 2, 2, 6),
        "several outputs": (3, 2, 4, 2, 3),
        "an axis of size 1": (3, 2, 4, 1, 6),
    }
    stored = kernel.reshape(shapes[name]) if order is None else kernel.transpose(order)
    layer = LayerMatrix("a", Leaf(0), layout, offset=Leaf(1), is_joint=True)
    in_flax = dataclasses.replace(layer, layout=flax_layout(4))
    expected = norm_of([kernel, bias], in_flax, **norm)
    np.testing.assert_allclose(norm_of([stored, bias], layer, **norm), expected, rtol=1e-6)
    matrix = layer_matrix([stored, bias], layer)
    assert np.array_equal(matrix["kernel"], kernel) and np.array_equal(matrix["bias"], bias)
    for array in (stored, np.asarray(stored)):
        back = restore(arrange(array, layout), layout, array.shape)
        assert type(back) is type(array) and np.array_equal(back, array)


@pytest.mark.parametrize("norm", [{}, {"norm": "spectral"}])
def test_a_dense_kernel_may_be_outputs_by_inputs(norm):
    kernel = normal(7, 4)
    layer = LayerMatrix("a", Leaf(0), Layout((), (1,), (0,)))
    in_flax = LayerMatrix("a", Leaf(0), flax_layout(2))
    expected = norm_of([kernel], in_flax, **norm)
    np.testing.assert_allclose(norm_of([kernel.T], layer, **norm), expected, rtol=1e-6)


@pytest.mark.parametrize("norm", [{}, {"norm": "spectral"}])
@pytest.mark.parametrize("scalar", [False, True])
def test_a_factor_multiplies_the_outputs(norm, scalar):
    """As batch normalization does, and a temperature."""
    kernel, scale, var = normal(3, 3, 4, 6), normal(1 if scalar else 6, seed=1), normal(6, seed=2)
    factor = ("mul", ("rsqrt", ("add", ("mul", Leaf(2), Leaf(2)), 1e-5)), Leaf(1))
    offset = ("sub", Leaf(1), ("mul", Leaf(2), factor))
    layer = LayerMatrix("a", Leaf(0), flax_layout(4), 1, factor, offset, is_joint=True)
    values = np.asarray(scale, np.float64) / np.sqrt(np.asarray(var, np.float64) ** 2 + 1e-5)
    shifts = np.asarray(scale, np.float64) - np.asarray(var, np.float64) * values
    absorbed = [jnp.asarray(x, jnp.float32) for x in (np.asarray(kernel) * values, shifts)]
    plain = LayerMatrix("a", Leaf(0), flax_layout(4), offset=Leaf(1), is_joint=True)
    expected = norm_of(absorbed, plain, **norm)
    np.testing.assert_allclose(norm_of([kernel, scale, var], layer, **norm), expected, rtol=1e-6)


def test_one_bias_for_all_outputs_counts_for_each():
    leaves = [normal(4, 6), normal(1, seed=1)]
    layer = LayerMatrix("a", Leaf(0), flax_layout(2), offset=Leaf(1), is_joint=True)
    whole = [leaves[0], jnp.broadcast_to(leaves[1], (6,))]
    np.testing.assert_allclose(norm_of(leaves, layer), norm_of(whole, layer), rtol=1e-7)


@pytest.mark.parametrize("groups", [2])
def test_the_spectral_norm_of_groups_is_the_largest_one(groups):
    kernel, bias = normal(3, 3, 2, 6), normal(6, seed=1)
    layer = LayerMatrix("a", Leaf(0), flax_layout(4)._replace(groups=groups), offset=Leaf(1))
    plain = LayerMatrix("a", Leaf(0), flax_layout(4), offset=Leaf(1))
    for is_joint in (False, True):
        joint = dataclasses.replace(layer, is_joint=is_joint)
        expected = max(
            norm_of(
                [kernel[..., part], bias[part]],
                dataclasses.replace(plain, is_joint=is_joint),
                norm="spectral",
            )
            for part in np.split(np.arange(6), groups)
        )
        value = norm_of([kernel, bias], joint, norm="spectral", scale=100.0)
        np.testing.assert_allclose(value, expected / 100, rtol=1e-6)
        ungrouped = norm_of([kernel, bias], dataclasses.replace(plain, is_joint=is_joint))
        assert norm_of([kernel, bias], joint) == ungrouped


def test_the_spectral_norm_of_a_factor_for_each_unit_is_the_largest():
    scale = normal(12)
    layer = LayerMatrix("a", Leaf(0), Layout((), (), (0,), 12))
    value = norm_of([scale], layer, norm="spectral")
    np.testing.assert_allclose(value, np.abs(scale).max(), rtol=1e-6)


def test_without_a_layout_only_entrywise_norms_are_defined():
    leaves = [normal(3, 4, 5), normal(5, seed=1)]
    layer = LayerMatrix("a", Leaf(0), None, offset=Leaf(1), is_joint=True)
    known = dataclasses.replace(layer, layout=flax_layout(3))
    for norm in (1, 2, 3.5, jnp.inf, "fro"):
        assert norm_of(leaves, layer, norm=norm) == norm_of(leaves, known, norm=norm)
    for norm in ("spectral", lambda leaves: jnp.max(leaves["kernel"])):
        with pytest.raises(ValueError, match="'a' acts could not be read: only entrywise norms"):
            norm_of(leaves, layer, norm=norm)
    for unknown in ({"factor": Leaf(1)}, {"offset": ("mul", Leaf(2), 1.0)}):
        with pytest.raises(ValueError, match="'a' acts could not be read, and so neither could"):
            norm_of([*leaves, normal(1)], dataclasses.replace(layer, **unknown))


# Parts of leaves, and powers.


def stacked():
    """Three layers in one leaf, as in a scan, and their biases; see `test_parts`."""
    leaves = [normal(3, 4, 4), normal(3, 4, seed=1), normal(4, 2, seed=2)]
    matrices = [LayerMatrix(f"0[{i}]", Leaf(0, i), flax_layout(2)) for i in range(3)]
    matrices.append(LayerMatrix("2", Leaf(2), flax_layout(2)))
    divisors = [(Leaf(0, i), ((i, 1),)) for i in range(3)]
    divisors += [(Leaf(1, i), tuple((k, 1) for k in range(i + 1))) for i in range(3)]
    divisors += [(Leaf(2), ((3, 1),))]
    return leaves, structure_of(leaves, *matrices, divisors=divisors)


def test_parts_of_a_leaf_are_layers():
    leaves, structure = stacked()
    norms = param_norms(leaves, structure=structure)
    assert list(norms) == ["0[0]", "0[1]", "0[2]", "2"]
    rho = [np.linalg.norm(part) for part in (*leaves[0], leaves[2])]
    np.testing.assert_allclose(list(norms.values()), rho, rtol=1e-6)
    expected = [
        np.asarray(leaves[0]) / np.array(rho[:3])[:, None, None],
        np.asarray(leaves[1]) / np.cumprod(rho[:3])[:, None],
        np.asarray(leaves[2]) / rho[3],
    ]
    normalize = jax.jit(normalize_params, static_argnames="structure")
    for normalized in (
        normalize_params(leaves, structure=structure),
        normalize(leaves, structure=structure),
        normalize_params(list(map(np.asarray, leaves)), structure=structure),
    ):
        for leaf, other in zip(normalized, expected, strict=True):
            np.testing.assert_allclose(leaf, other, rtol=1e-6)


def test_powers_may_be_fractions():
    """As of the parameters of `sqrt(w1 x^2) + b`, b of degree 1/2."""
    leaves = [normal(4, 5), normal(5, seed=1), normal(5, 3, seed=2)]
    matrices = (
        LayerMatrix("0", Leaf(0), flax_layout(2), degree=Fraction(1, 2)),
        LayerMatrix("2", Leaf(2), flax_layout(2), degree=2),
    )
    half = ((0, Fraction(1, 2)),)
    divisors = [(Leaf(0), ((0, 1),)), (Leaf(1), half), (Leaf(2), ((1, 1),))]
    structure = structure_of(leaves, *matrices, divisors=divisors)
    first, second = (np.linalg.norm(np.float64(leaves[i])) for i in (0, 2))
    expected = math.sqrt(first) * second**2
    np.testing.assert_allclose(product_norm(leaves, structure=structure), expected, rtol=1e-6)
    log = log_product_norm(leaves, structure=structure)
    np.testing.assert_allclose(log, math.log(expected), rtol=1e-6)
    normalized = normalize_params(leaves, structure=structure)
    np.testing.assert_allclose(normalized[1], leaves[1] / math.sqrt(first), rtol=1e-6)


# Transformations and containers.


def test_a_structure_is_a_static_argument_and_maps_over_networks():
    leaves, structure = stacked()
    assert structure == stacked()[1] and hash(structure) == hash(stacked()[1])
    networks = [[leaf * scale for leaf in leaves] for scale in (1, 2, 3)]
    both = jax.tree.map(lambda *parts: jnp.stack(parts), *networks)
    mapped = jax.jit(jax.vmap(lambda p: normalize_params(p, structure=structure)))(both)
    for i, network in enumerate(networks):
        for leaf, other in zip(mapped, normalize_params(network, structure=structure), strict=True):
            np.testing.assert_allclose(leaf[i], other, rtol=1e-6)
    with pytest.raises(ValueError, match="stacked networks are handled by jax"):
        normalize_params(both, structure=structure)


def test_gradients_flow_through_parts_and_factors():
    with jax.enable_x64(True):
        leaves, structure = stacked()
        leaves = [np.asarray(leaf, np.float64) for leaf in leaves]
        direction = [np.cos(7 * leaf) for leaf in leaves]

        @jax.jit
        def value(step):
            moved = [leaf + step * d for leaf, d in zip(leaves, direction, strict=True)]
            normalized = normalize_params(moved, structure=structure)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in normalized)

        expected = (value(1e-6) - value(-1e-6)) / 2e-6
        np.testing.assert_allclose(jax.grad(value)(0.0), expected, rtol=1e-7)


def test_leaves_that_are_not_arrays_stay():
    leaves, structure = stacked()
    named = (*structure.leaves, ("3", ()), ("4", (2,)))
    structure = dataclasses.replace(structure, leaves=named)
    extra = [jnp.tanh, np.arange(2)]
    normalized = normalize_params([*leaves, *extra], structure=structure)
    assert normalized[3] is jnp.tanh and normalized[4] is extra[1]
    plain = normalize_params(leaves, structure=stacked()[1])
    assert np.array_equal(normalized[0], plain[0])
