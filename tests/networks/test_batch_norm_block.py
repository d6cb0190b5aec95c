"""Blocks of batch normalization against the plain formulas in float64, Flax and PyTorch."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from normjax.networks.batch_norm_block import Activations, conv_activations, conv_batch_norm
from normjax.networks.models import make_model

# Image, images, images that count, then (kernel, filters, strides, padding) of each layer. The last
# layer is a plain convolution.
CASES = {
    "the 5-layer net": (
        (16, 16, 3),
        16,
        16,
        [
            ((3, 3), 8, (1, 1), "SAME"),
            ((3, 3), 12, (2, 2), "SAME"),
            ((3, 3), 32, (2, 2), "SAME"),
            ((4, 4), 5, (1, 1), "VALID"),
        ],
    ),
    "odd sizes": (
        (13, 10, 2),
        11,
        9,
        [
            ((5, 4), 3, (2, 1), "VALID"),
            ((3, 2), 4, (3, 2), "SAME"),
            ((2, 2), 3, (1, 1), "SAME"),
        ],
    ),
    "strides beyond the kernel": (
        (9, 11, 3),
        3,
        3,
        [((2, 1), 4, (3, 2), "VALID"), ((1, 2), 4, (2, 3), "SAME"), ((1, 1), 2, (1, 1), "VALID")],
    ),
    "Toom-Cook": (
        (14, 12, 8),
        20,
        17,
        [((3, 3), 8, (1, 1), "SAME"), ((5, 5), 9, (1, 1), "VALID"), ((1, 1), 2, (2, 2), "SAME")],
    ),
}


def make_arrays(case, seed=0):
    """Images, weights, and the parameters of each layer, float32."""
    (h, w, channels), num, counted, layers = case
    rng = np.random.default_rng(seed)
    images = np.float32(rng.normal(0.3, 1, (num, h, w, channels)))
    params = []
    for kernel_size, features, _, _ in layers:
        kernel = rng.normal(0, 1, (*kernel_size, channels, features))
        scale, bias = rng.uniform(0.5, 2, features), rng.normal(0, 0.5, features)
        params.append([np.float32(leaf) for leaf in (kernel, scale, bias)])
        channels = features
    return images, np.float32(np.arange(num) < counted), params


def apply_blocks(case, images, weights, params, algorithm="platform"):
    """The output, and the statistics of each layer but the last."""
    x, statistics = Activations(images), []
    *layers, (_, _, strides, padding) = case[3]
    for (_, _, *geometry), (kernel, scale, bias) in zip(layers, params, strict=False):
        how = dict(zip(("strides", "padding"), geometry, strict=True)) | {"algorithm": algorithm}
        x, moments = conv_batch_norm(x, kernel, scale, bias, weights, **how)
        statistics += moments
    how = {"strides": strides, "padding": padding, "algorithm": algorithm}
    return conv_activations(x, params[-1][0], **how), statistics


def apply_plainly(case, images, weights, params):
    """The same by definition: XLA's convolution, and the variance as the mean squared distance."""
    x, statistics = images, []
    for (_, _, strides, padding), (kernel, scale, bias) in zip(case[3], params, strict=True):
        x = lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        if len(statistics) == 2 * (len(case[3]) - 1):
            return x, statistics
        w = weights[:, None, None, None] / (weights.sum() * x.shape[1] * x.shape[2])
        mean = (w * x).sum((0, 1, 2))
        distance = x - mean[None, None, None]
        var = (w * distance**2).sum((0, 1, 2))
        statistics += [mean, var]
        normalized = distance / jnp.sqrt(var + 1e-5)[None, None, None]
        x = jax.nn.relu(normalized * scale[None, None, None] + bias[None, None, None])
    raise AssertionError


def run(apply, case, images, weights, params):
    """Output, statistics, and gradients with respect to images and parameters.

    Images that do not count have no gradient.
    """

    def loss(images, params):
        y, statistics = apply(case, images, weights, params)
        dy = np.random.default_rng(1).normal(size=y.shape).astype(y.dtype)
        return jnp.sum(weights[:, None, None, None] * dy * y), (y, statistics)

    grads, outputs = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(images, params)
    return jax.device_get((outputs, grads))


def assert_close(actual, expected, relative_error=3e-6):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        distance = np.linalg.norm(np.float64(one) - np.float64(other))
        assert distance <= relative_error * np.linalg.norm(np.float64(other))


@functools.cache
def float64_of(name):
    """`run(apply_plainly, ...)` in float64."""
    with jax.enable_x64(True):
        arrays = jax.tree.map(np.float64, make_arrays(CASES[name]))
        outputs = run(apply_plainly, CASES[name], *arrays)
        assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(outputs))
        return outputs


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_float64(name):
    outputs = run(apply_blocks, CASES[name], *make_arrays(CASES[name]))
    assert_close(outputs, float64_of(name), 1e-5 if name == "Toom-Cook" else 3e-6)


@pytest.mark.parametrize("algorithm", ["xla", "patches"])
def test_other_algorithms_agree(algorithm):
    """All images at once, as GPU and TPU compute it, here on a CPU."""
    case, arrays = CASES["odd sizes"], make_arrays(CASES["odd sizes"])
    apply = functools.partial(apply_blocks, algorithm=algorithm)
    jaxpr = str(jax.make_jaxpr(lambda *args: apply(case, *args))(*arrays))
    assert "scan" not in jaxpr and ("conv_general_dilated" in jaxpr) == (algorithm == "xla")
    assert_close(run(apply, case, *arrays), float64_of("odd sizes"))


def test_values_and_gradients_are_those_of_pytorch_in_float64():
    torch = pytest.importorskip("torch", reason="an optional extra: float64 is tested without it")
    name = "the 5-layer net"
    images, weights, params = make_arrays(CASES[name])
    assert weights.all()  # PyTorch has no mask
    leaves = [[torch.tensor(leaf, dtype=torch.float64) for leaf in layer] for layer in params]
    x = start = torch.tensor(np.transpose(images, (0, 3, 1, 2)), dtype=torch.float64)
    for leaf in jax.tree.leaves([start, leaves]):
        leaf.requires_grad_()
    statistics = []
    for (size, _, strides, padding), (kernel, scale, bias) in zip(
        CASES[name][3], leaves, strict=True
    ):
        if padding == "SAME":  # the odd zero comes last, as in TensorFlow
            total = [k - s for k, s in zip(size, strides, strict=True)]
            pads = [(t // 2, t - t // 2) for t in reversed(total)]
            x = torch.nn.functional.pad(x, sum(pads, ()))
        x = torch.nn.functional.conv2d(x, kernel.permute(3, 2, 0, 1), stride=strides)
        if len(statistics) < 2 * (len(leaves) - 1):
            mean, var = torch.zeros(len(scale)).double(), torch.ones(len(scale)).double()
            x = torch.nn.functional.batch_norm(x, mean, var, scale, bias, training=True, momentum=1)
            count = x.numel() / x.shape[1]
            statistics += [mean.numpy(), var.numpy() * (count - 1) / count]  # PyTorch's is unbiased
            x = torch.relu(x)
    y = x.permute(0, 2, 3, 1)
    dy = torch.tensor(np.random.default_rng(1).normal(size=tuple(y.shape)).astype(np.float32))
    (y * dy).sum().backward()
    outputs, (dimages, dparams) = run(apply_blocks, CASES[name], images, weights, params)
    assert_close(outputs, (y.detach().numpy(), statistics))
    assert_close(dimages, start.grad.permute(0, 2, 3, 1).numpy())
    for layer, layer64 in zip(dparams[:-1], leaves, strict=False):
        assert_close(layer, [leaf.grad.numpy() for leaf in layer64])
    assert_close(dparams[-1][0], leaves[-1][0].grad.numpy())


@pytest.mark.slow
def test_stacked_members_get_what_each_gets_alone():
    case = CASES["odd sizes"]
    images, weights, _ = make_arrays(case)
    members = [make_arrays(case, seed)[2] for seed in range(2)]

    def gradients(params):
        return jax.grad(lambda p: jnp.sum(apply_blocks(case, images, weights, p)[0] ** 2))(params)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    together = jax.jit(jax.vmap(gradients))(stacked)
    for i, member in enumerate(members):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        assert_close(one, jax.jit(gradients)(member))


def test_what_conv2d_refuses_is_refused():
    x, ones = Activations(jnp.ones((2, 3, 3, 1))), jnp.ones(4)
    with pytest.raises(ValueError, match=r"an image of .* is smaller than the kernel"):
        conv_batch_norm(x, jnp.ones((4, 4, 1, 4)), ones, ones, jnp.ones(2))


class PlainConvNet5(nn.Module):
    """The 5-layer net as one writes it with Flax."""

    @nn.compact
    def __call__(self, x, mask):
        for features, stride in ((32, 1), (64, 2), (64, 2), (128, 2)):
            x = nn.Conv(features, (3, 3), strides=stride, use_bias=False)(x)
            norm = nn.BatchNorm(use_running_average=False, momentum=0.9)
            x = nn.relu(norm(x, mask=mask[:, None, None, None]))
        x = nn.Conv(10, x.shape[1:3], padding="VALID", use_bias=False)(x)
        return x.reshape(len(x), -1)


@pytest.mark.slow
def test_the_5_layer_net_trains_as_with_flax_batch_norm():
    """Logits, running statistics and gradients; the last 4 of 12 images are masked."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(12, 8, 9, 3)), jnp.float32)
    mask = jnp.arange(12) < 8
    model = make_model("convnet5", batch_norm=True)
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def run(net, **keywords):
        def loss(params):
            now = {**variables, "params": params}
            logits, state = net.apply(now, images, mask=mask, mutable="batch_stats", **keywords)
            return jnp.sum(jax.nn.logsumexp(3 * logits[:8], 1)), (logits[:8], state)

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    actual, expected = run(model, train=True), run(PlainConvNet5())
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert_close(actual, expected, 1e-5)


def test_training_mode_initializes_variables_of_the_same_shapes():
    model, images = make_model("convnet5", batch_norm=True), jnp.zeros((1, 8, 8, 2))
    inits = [functools.partial(model.init, train=train) for train in (False, True)]
    shapes, shapes_in_training = (jax.eval_shape(f, jax.random.key(0), images) for f in inits)
    assert shapes == shapes_in_training
