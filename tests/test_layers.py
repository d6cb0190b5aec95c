import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax.layers import find_layers


def dense(inputs=3, outputs=3):
    return {"kernel": np.ones((inputs, outputs), np.float32), "bias": np.ones(outputs, np.float32)}


def paths(params, layers=None):
    return [layer.path for layer in find_layers(params, layers)]


class DeepMlp(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = nn.Dense(2)(x)
        return x


def test_linen_names_are_in_order_of_application_beyond_ten_layers():
    params = DeepMlp(12).init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    assert paths(params) == [f"Dense_{i}" for i in range(12)]


def test_convolutions_come_before_dense_layers_and_numbers_count_as_numbers():
    params = {name: dense() for name in ("Dense_0", "Conv_10", "Conv_2", "Conv_1")}
    assert paths(params) == ["Conv_1", "Conv_2", "Conv_10", "Dense_0"]


def test_nested_modules_are_ordered_part_by_part():
    block = {"Dense_1": dense(), "Dense_0": dense()}
    params = {"block_10": {"Dense_0": dense()}, "block_9": block, "out": dense()}
    assert paths(params) == ["block_9/Dense_0", "block_9/Dense_1", "block_10/Dense_0", "out"]


def test_nnx_lists_have_integer_keys():
    class Mlp(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(11)])
            self.out = nnx.Linear(3, 2, use_bias=False, rngs=rngs)

    layers = find_layers(nnx.to_pure_dict(nnx.split(Mlp(nnx.Rngs(0)))[1]))
    assert [layer.path for layer in layers] == [*(f"hidden/{i}" for i in range(11)), "out"]
    assert layers[-1].bias is None


def test_positions_are_those_of_the_leaves():
    params = {"Dense_10": dense(2, 5), "Dense_9": {"kernel": np.zeros((3, 2), np.float32)}}
    leaves = jax.tree.leaves(params)
    first, second = find_layers(params)
    assert leaves[first.kernel] is params["Dense_9"]["kernel"]
    assert first.bias is None
    assert leaves[second.kernel] is params["Dense_10"]["kernel"]
    assert leaves[second.bias] is params["Dense_10"]["bias"]


def test_a_tree_may_itself_be_one_layer():
    assert paths(dense()) == ["."]


def test_abstract_leaves_will_do():
    abstract = jax.eval_shape(lambda: {"Dense_0": dense(), "Dense_1": dense()})
    assert paths(abstract) == ["Dense_0", "Dense_1"]


def test_given_order_wins():
    params = {"head": dense(), "stem": dense()}
    assert paths(params) == ["head", "stem"]
    assert paths(params, ["stem", "head"]) == ["stem", "head"]


@pytest.mark.parametrize(
    "layers", [["stem"], ["stem", "head", "neck"], ["stem", "stem", "head"], ["stem", "stem"], []]
)
def test_given_order_must_name_every_layer_once(layers):
    with pytest.raises(ValueError, match=r"each of \['head', 'stem'\] once"):
        find_layers({"head": dense(), "stem": dense()}, layers)


def test_given_order_is_not_one_string():
    with pytest.raises(ValueError, match="not the string 'stem'"):
        find_layers({"stem": dense()}, "stem")


def test_names_that_cannot_be_in_order_are_warned_of():
    params = {"head": dense(7, 10), "stem": dense(13, 7)}
    with pytest.warns(UserWarning, match="'head' has 10 outputs, but 'stem' takes 13 inputs"):
        find_layers(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_layers(params, ["stem", "head"])
        # Flattening a 2 x 2 grid of 6 channels; a depthwise convolution.
        find_layers({"Conv_0": dense(3, 6), "Dense_0": dense(24, 10)})
        find_layers({"Conv_0": dense(3, 6), "Conv_1": dense(1, 6)})


@pytest.mark.parametrize(
    ("stray", "path"),
    [
        ({"Embed_0": {"embedding": np.ones((4, 3))}}, "Embed_0/embedding"),
        ({"LayerNorm_0": {"scale": np.ones(3), "bias": np.ones(3)}}, "LayerNorm_0/"),
        ({"Dense_1": {"bias": np.ones(3)}}, "Dense_1/bias"),
        ({"Dense_1": {"my_kernel": np.ones((3, 3))}}, "Dense_1/my_kernel"),
        ({"Dense_1": {**dense(), "gain": np.ones(3)}}, "Dense_1/gain"),
        ({"logit_scale": np.ones(())}, "logit_scale"),
    ],
)
def test_leaves_that_fit_no_layer_are_named(stray, path):
    with pytest.raises(ValueError, match=f"leaf '{path}.* is not part of a layer"):
        find_layers({"Dense_0": dense(), **stray})


@pytest.mark.parametrize(
    "stray",
    [
        {"batch_stats": {"BatchNorm_0": {"mean": np.ones(3), "var": np.ones(3)}}},
        {"params": {"BatchNorm_0": {"scale": np.ones(3), "bias": np.ones(3)}}},
    ],
)
def test_batch_normalization_is_pointed_to_absorb_batch_norm(stray):
    with pytest.raises(ValueError, match=r"'\w+/BatchNorm_0/\w+'.*absorb_batch_norm"):
        find_layers({"Dense_0": dense(), **stray})


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"kernel": np.ones((3, 3), np.int32)}, "'Dense_0/kernel' must be .* not int32"),
        ({"kernel": np.ones((3, 3), np.complex64)}, "'Dense_0/kernel' must be .* not complex64"),
        ({"kernel": jax.random.key(0)}, "'Dense_0/kernel' must be .* not key"),
        ({"kernel": 1.5}, "'Dense_0/kernel' must be .* not float"),
        ({"kernel": np.ones(3)}, r"'Dense_0' has shape \(3,\)"),
        ({"kernel": np.ones((0, 3))}, r"'Dense_0' has shape \(0, 3\)"),
        ({"kernel": np.ones((8, 3, 4)), "bias": np.ones((8, 4))}, "'Dense_0' .* jax.vmap"),
    ],
)
def test_leaves_of_a_layer_are_checked(layer, message):
    with pytest.raises(ValueError, match=message):
        find_layers({"Dense_0": layer})


@pytest.mark.parametrize("empty", [{}, {"Dense_0": {}}, {"Dense_0": {"kernel": None}}])
def test_an_empty_tree_is_an_error(empty):
    with pytest.raises(ValueError, match="no leaves"):
        find_layers(empty)
