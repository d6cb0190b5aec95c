"""What layers read and how margins depend on it, against numpy and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax
from normjax.generalization.hidden_layers import hidden_layers, read_layers
from tests.helpers.networks import Convnet3, Convnet5, apply_fn, images, random_variables
from tests.helpers.trained_networks import trained_convnet3, trained_mlp


def mlp_by_hand(network):
    """(representations, gradient norms of the margins) of an MLP in float64, by hand."""
    layers = [network.params[f"Dense_{i}"] for i in range(len(network.params))]
    kernels = [np.asarray(layer["kernel"], np.float64) for layer in layers]
    read, h = [], network.sample.x.astype(np.float64)
    for layer, kernel in zip(layers, kernels, strict=True):
        read.append(h)
        z = h @ kernel + np.asarray(layer["bias"], np.float64)
        h = np.maximum(z, 0)
    norms = []
    for i, label in enumerate(network.sample.labels):
        rival = max((k for k in range(z.shape[1]) if k != label), key=lambda k: z[i, k])
        gradient = np.zeros(z.shape[1])
        gradient[label], gradient[rival] = 1, -1
        own = []
        for k in reversed(range(len(kernels))):
            gradient = kernels[k] @ gradient
            own.append(np.linalg.norm(gradient))
            gradient = gradient * (read[k][i] > 0)
        norms.append(own[::-1])
    return read, np.array(norms).T


def test_an_mlp_by_hand():
    network = trained_mlp()
    read, norms = mlp_by_hand(network)
    found = network.hidden  # batches of 16, and a last one that is filled up
    np.testing.assert_allclose(found.logits, network.logits, rtol=1e-5, atol=1e-5)
    for layer in range(3):
        np.testing.assert_allclose(found.inputs[layer], read[layer], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.gradient_norms[layer], norms[layer], rtol=1e-5)


def test_a_convolution_against_pytorch():
    torch = pytest.importorskip("torch")
    network = trained_convnet3(num_examples=20)
    kernels = [
        torch.tensor(np.asarray(network.params[name]["kernel"]), dtype=torch.float64)
        for name in ("Conv_0", "Conv_1", "Dense_0")
    ]
    bias = torch.tensor(np.asarray(network.params["Conv_0"]["bias"]), dtype=torch.float64)
    x = torch.tensor(network.sample.x, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
    first = torch.relu(torch.nn.functional.conv2d(x, kernels[0].permute(3, 2, 0, 1), bias))
    second = torch.relu(torch.nn.functional.conv2d(first, kernels[1].permute(3, 2, 0, 1)))
    flat = second.permute(0, 2, 3, 1).reshape(len(x), -1)
    logits = flat @ kernels[2]
    labels = torch.tensor(network.sample.labels, dtype=torch.int64)[:, None]
    others = logits.scatter(1, labels, -torch.inf).max(dim=1).values
    margins = logits.gather(1, labels)[:, 0] - others
    gradients = torch.autograd.grad(margins.sum(), [x, first, flat])
    found = network.hidden
    for layer, (values, gradient) in enumerate(zip((x, first, flat), gradients, strict=True)):
        expected = values.detach().permute(0, 2, 3, 1) if values.ndim == 4 else values.detach()
        np.testing.assert_allclose(
            found.inputs[layer], expected.reshape(len(x), -1), rtol=1e-4, atol=1e-5
        )
        norms = gradient.reshape(len(x), -1).norm(dim=1)
        np.testing.assert_allclose(found.gradient_norms[layer], norms, rtol=1e-4)


def test_layers_in_a_compiled_network_with_batch_normalization():
    """Each layer reads what the module before it wrote."""
    model, x = Convnet5(), images()
    variables = random_variables(model, x)
    structure = normjax.trace_structure(model.apply, variables, x)
    logits, read = read_layers(jax.jit(model.apply), structure, variables, x)
    expected, state = model.apply(variables, x, capture_intermediates=True)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(read[0], x)
    for layer in range(1, 5):
        (norm,) = state["intermediates"][f"BatchNorm_{layer - 1}"]["__call__"]
        np.testing.assert_allclose(read[layer], jax.nn.relu(norm), rtol=1e-4, atol=1e-5)


def test_shifts_are_added_to_what_a_layer_reads():
    model, x = Convnet3(), images((3, 8, 8, 3))
    params = random_variables(model, x)["params"]
    structure = normjax.trace_structure(apply_fn(model), params, x)
    _, read = read_layers(apply_fn(model), structure, params, x)
    shifts = [jnp.zeros_like(read[0]), jnp.ones_like(read[1]), -read[2]]
    logits, shifted = read_layers(apply_fn(model), structure, params, x, shifts)
    np.testing.assert_allclose(shifted[1], read[1], rtol=1e-6)  # as it was before the shift
    assert not np.allclose(shifted[2], read[2])
    np.testing.assert_allclose(
        logits, (shifted[2] - read[2]) @ params["Dense_0"]["kernel"], rtol=1e-4
    )


def test_what_cannot_be_read_is_refused():
    x = jnp.ones((4, 3))

    def two_kernels(params, x):
        return x @ (params["a"] + params["b"])

    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((3, 2))}
    simple = normjax.trace_structure(lambda p, x: x @ p["a"] @ p["b"].T, params, x)
    with pytest.raises(ValueError, match="what layers 'a', 'b' read could not be found"):
        hidden_layers(two_kernels, simple, params, np.ones((4, 3)), np.zeros(4, int), batch_size=4)

    def twice(params, x):
        return x @ params["a"] @ params["b"].T @ params["a"]

    with pytest.raises(ValueError, match="layer 'a' is applied twice"):
        read_layers(twice, simple, params, x)
    with pytest.raises(ValueError, match="what layer 'b' reads could not be found"):
        read_layers(lambda p, x: x @ p["a"], simple, params, x)
