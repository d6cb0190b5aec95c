import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from normjax.layers import choose_structure, find_layers
from normjax.structure import NetworkStructure


def dense(inputs=3, outputs=3):
    return {"kernel": np.ones((inputs, outputs), np.float32), "bias": np.ones(outputs, np.float32)}


def conv(inputs=3, outputs=3):
    return {"kernel": np.ones((3, 3, inputs, outputs), np.float32)}


def paths(params, layers=None):
    return list(find_layers(params, layers).layers)


class DeepMlp(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = nn.Dense(2)(x)
        return x


# Names that prove the order.


def test_linen_names_are_in_order_of_application_beyond_ten_layers():
    variables = DeepMlp(12).init(jax.random.key(0), jnp.ones((1, 2)))
    assert paths(variables["params"]) == [f"Dense_{i}" for i in range(12)]
    assert paths(variables) == [f"params/Dense_{i}" for i in range(12)]


def test_lists_have_indices():
    class Mlp(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(11)])

    params = nnx.to_pure_dict(nnx.split(Mlp(nnx.Rngs(0)))[1])
    assert paths(params) == [f"layers/{i}" for i in range(11)]
    assert paths([params["layers"][i] for i in range(11)]) == [str(i) for i in range(11)]


def test_one_layer_may_have_any_name():
    assert paths(dense()) == ["."]
    assert paths({"params": {"head": dense()}}) == ["params/head"]


def test_a_convolution_may_be_flattened():
    params = {"layers_0": conv(3, 6), "layers_1": conv(6, 4), "layers_2": dense(4 * 9, 10)}
    assert paths(params) == ["layers_0", "layers_1", "layers_2"]


def test_the_structure_of_a_chain():
    params = {f"Dense_{i}": dense(2, 2) for i in range(3)}
    del params["Dense_1"]["bias"]
    structure = find_layers(params)
    assert not structure.is_traced and structure.problems == ()
    number = {path: i for i, (path, _) in enumerate(structure.leaves)}
    assert dict(structure.leaves)["Dense_2/kernel"] == (2, 2)
    divisors = {leaf.number: powers for leaf, powers in structure.divisors}
    assert divisors == {
        number["Dense_0/kernel"]: ((0, 1),),
        number["Dense_0/bias"]: ((0, 1),),
        number["Dense_1/kernel"]: ((1, 1),),
        number["Dense_2/kernel"]: ((2, 1),),
        number["Dense_2/bias"]: ((0, 1), (1, 1), (2, 1)),
    }
    first, second, third = structure.matrices
    assert [layer.kernel.number for layer in (first, second, third)] == [
        number[f"Dense_{i}/kernel"] for i in range(3)
    ]
    assert first.bias == first.offset and first.bias.number == number["Dense_0/bias"]
    assert second.offset is third.bias is None and third.offset is not None
    assert find_layers(params) is structure  # nothing is looked up twice
    assert hash(find_layers(jax.eval_shape(lambda: params))) == hash(structure)


# Names that do not.


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"stem": dense(), "head": dense()}, "automatic names of one kind"),
        ({"dense1": dense(), "dense2": dense()}, "automatic names of one kind"),
        ({"Conv_0": conv(), "Dense_0": dense()}, "automatic names of one kind"),
        ({"Conv_0": conv(), "Dense_1": dense()}, "automatic names of one kind"),
        ({"dense": dense(), "dense_1": dense()}, "automatic names of one kind"),
        ({"Dense_0": dense(), "Dense_2": dense()}, "numbers are not 0, 1, 2"),
        ({"Dense_1": dense(), "Dense_2": dense()}, "numbers are not 0, 1, 2"),
        ({"Dense_0": dense(), "Dense_00": dense()}, "automatic names of one kind"),
        ({"Block_0": {"Dense_0": dense()}, "Dense_0": dense()}, "not all in one module"),
        (
            {"Block_0": {"Dense_0": dense()}, "Block_1": {"Dense_0": dense()}},
            "not all in one module",
        ),
    ],
)
def test_names_that_do_not_prove_the_order(params, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        find_layers(params)
    assert str(caught.value).endswith(
        "pass structure=normjax.trace_structure(apply_fn, params, x), or layers=, the paths of all "
        "layers in order of application"
    )
    order = sorted(paths_of(params))
    assert paths(params, order) == order


def paths_of(params):
    """The paths of modules with a kernel."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/") or "."
        for path, _ in leaves
        if path[-1].key == "kernel"
    }


def test_the_outer_layer_is_named_first():
    """`Dense(10)(relu(Dense(64)(x)))`."""

    class OneLine(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10)(nn.relu(nn.Dense(64)(x)))

    params = OneLine().init(jax.random.key(0), jnp.ones((1, 5)))["params"]
    with pytest.raises(
        ValueError, match="'Dense_1' takes 5 inputs, which does not match the 10 out"
    ):
        find_layers(params)
    assert paths(params, ["Dense_1", "Dense_0"]) == ["Dense_1", "Dense_0"]


@pytest.mark.parametrize(
    "params",
    [
        {"Dense_0": dense(3, 4), "Dense_1": dense(5, 2)},
        {"Dense_0": dense(3, 4), "Dense_1": dense(8, 2)},  # nothing to flatten
        {"Conv_0": conv(3, 4), "Conv_1": conv(2, 4)},  # groups
        {"Conv_0": conv(3, 4), "Conv_1": conv(8, 4)},
        {"l_0": dense(3, 8), "l_1": conv(2, 4)},
        {"l_0": conv(3, 4), "l_1": dense(18, 2)},
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_shapes_that_are_not_a_chain(params, given):
    with pytest.raises(ValueError, match=r"the layers are not a chain; pass structure="):
        find_layers(params, list(params) if given else None)


# A given order.


def test_given_order_wins():
    params = {"head": dense(), "stem": dense()}
    assert paths(params, ["stem", "head"]) == ["stem", "head"]
    assert paths(params, ("head", "stem")) == ["head", "stem"]


@pytest.mark.parametrize(
    "layers", [["stem"], ["stem", "head", "neck"], ["stem", "stem", "head"], ["stem", "stem"], []]
)
def test_given_order_must_name_every_layer_once(layers):
    with pytest.raises(ValueError, match=r"each of \['head', 'stem'\] once"):
        find_layers({"head": dense(), "stem": dense()}, layers)


def test_given_order_is_not_one_string():
    with pytest.raises(ValueError, match="sequence of paths, not 'stem'"):
        find_layers({"stem": dense()}, "stem")


# Leaves that are not of layers.


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
    with pytest.raises(
        ValueError, match=f"leaf '{path}.* is not part of a layer.* pass structure="
    ):
        find_layers({"Dense_0": dense(), **stray})


def test_batch_statistics_are_handled_by_a_structure_or_absorbed():
    stats = {"batch_stats": {"BatchNorm_0": {"mean": np.ones(3), "var": np.ones(3)}}}
    with pytest.raises(
        ValueError, match=r"_0/mean'.*structure=.*, or absorb it with absorb_batch_norm"
    ):
        find_layers({"Dense_0": dense(), **stats})


@pytest.mark.parametrize("name", ["LayerNorm_0", "GroupNorm_0", "BatchNorm_0"])
def test_a_scale_without_statistics_is_not_to_be_absorbed(name):
    with pytest.raises(ValueError, match=r"structure=.*needs its statistics in params") as caught:
        find_layers({"Dense_0": dense(), name: {"scale": np.ones(3), "bias": np.ones(3)}})
    assert "absorb" not in str(caught.value)


@pytest.mark.parametrize("optimizer", [optax.adam(1.0), optax.sgd(1.0, momentum=0.9)])
def test_the_state_of_an_optimizer_is_refused(optimizer):
    state = optimizer.init({"Dense_0": dense()})
    with pytest.raises(
        ValueError, match=r"is in an object, .* optimizer's state is not normalized"
    ):
        find_layers(state)


def test_objects_are_pointed_to_trace_structure():
    state = nnx.state(nnx.Linear(3, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(
        ValueError, match=r"is in an object, .* pass structure=normjax.trace_struct"
    ):
        find_layers(state)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"kernel": np.ones((3, 3), np.int32)}, "'Dense_0/kernel' must be .* not int32"),
        ({"kernel": np.ones((3, 3), np.complex64)}, "'Dense_0/kernel' must be .* not complex64"),
        ({"kernel": jax.random.key(0)}, "'Dense_0/kernel' must be .* not key"),
        ({"kernel": 1.5}, "'Dense_0/kernel' must be .* not float"),
        ({**dense(), "step": np.int32(3)}, "'Dense_0/step' must be .* not int32"),
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


# A given structure.


def test_a_structure_that_fits_is_taken():
    params = {"Dense_0": dense(3, 4), "Dense_1": dense(4, 2)}
    structure = find_layers(params)
    for tree in (params, jax.eval_shape(lambda: params), nn.FrozenDict(params)):
        assert choose_structure(tree, None, structure) is structure


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Dense_1": None}, "it has a leaf 'Dense_1/bias'"),
        ({"Dense_2": dense()}, "it has no leaf 'Dense_2/bias'"),
        ({"Dense_1": dense(4, 3)}, r"'Dense_1/bias' has shape \(3,\), there \(2,\)"),
        (
            {"Dense_0": {"kernel": np.ones((9, 3, 4)), "bias": np.ones(4)}},
            r"'Dense_0/kernel' has shape \(9, 3, 4\), there \(3, 4\); stacked networks are handled",
        ),
    ],
)
def test_a_structure_of_another_tree_is_refused(change, message):
    params = {"Dense_0": dense(3, 4), "Dense_1": dense(4, 2)}
    structure = find_layers(params)
    with pytest.raises(ValueError, match=f"^the structure belongs to another tree: .*{message}"):
        choose_structure({**params, **change}, None, structure)


def test_a_structure_with_leaves_in_another_order_is_refused():
    structure = find_layers([dense(3, 3), dense(3, 3)])
    swapped = NetworkStructure(structure.leaves[::-1], structure.matrices, structure.divisors)
    with pytest.raises(ValueError, match="its leaves have another order"):
        choose_structure([dense(3, 3), dense(3, 3)], None, swapped)


def test_a_structure_that_is_not_certified_lists_its_problems():
    params = {"Dense_0": dense()}
    whole = find_layers(params)
    problems = tuple(f"problem {i}" for i in range(9))
    broken = NetworkStructure(whole.leaves, whole.matrices, whole.divisors, ("a",), problems)
    with pytest.raises(ValueError, match=r"not certified: problem 0; .*problem 5; and 3 more") as e:
        choose_structure(params, None, broken)
    assert "tied='keep' normalizes the other layers" in str(e.value)
    assert choose_structure(params, None, broken, "keep") is broken
    empty = NetworkStructure(whole.leaves, (), (), ("a",), problems)
    with pytest.raises(ValueError, match="no layer that can be normalized"):
        choose_structure(params, None, empty, "keep")


def test_arguments_that_contradict_each_other_are_refused():
    params = {"Dense_0": dense()}
    structure = find_layers(params)
    with pytest.raises(ValueError, match="give structure or layers, not both"):
        choose_structure(params, ["Dense_0"], structure)
    with pytest.raises(
        ValueError, match=r"must be the result of normjax.trace_structure, not <cla"
    ):
        choose_structure(params, None, params)
    with pytest.raises(ValueError, match="tied must be 'refuse' or 'keep', not True"):
        choose_structure(params, None, structure, True)
