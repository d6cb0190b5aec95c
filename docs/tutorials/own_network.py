# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Normalize your own network
#
# Normalization divides each layer of a network by its norm. Only the scale of the output changes,
#
#     f(W; x) = rho_1 rho_2 ... rho_K f(W~; x)
#
# where the `rho_k` are the norms of the layers and `W~` are the weights after division. This
# tutorial normalizes a Flax Linen network, a Flax NNX network and a PyTorch network.

# %%
import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import normjax

x = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype(np.float32)

# %% [markdown]
# ## Flax Linen
#
# A network with batch normalization and max pooling.


# %%
class Vgg(nn.Module):
    @nn.compact
    def __call__(self, images, *, train=False):
        x = images
        for features in (8, 16):
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(10)(x.reshape(len(x), -1))


vgg = Vgg()
variables = vgg.init(jax.random.key(0), x)

# %% [markdown]
# `trace_structure` reads the layers and their order off the computation. The printed
# structure is a certificate for all weights and all inputs of this shape.

# %%
structure = normjax.trace_structure(vgg.apply, variables, x)
print(structure)

# %% [markdown]
# The norms come in the order in which the layers are applied. The normalized network is the same
# tree of variables, so the same `apply` takes it.

# %%
for norm in (2, 1, "spectral"):
    rho = normjax.param_norms(variables, norm, structure=structure)
    print(norm, {layer: round(float(value), 3) for layer, value in rho.items()})

# %%
normalized = normjax.normalize_params(variables, structure=structure)
product = normjax.product_norm(variables, structure=structure)
logits = vgg.apply(variables, x)
difference = jnp.abs(logits - product * vgg.apply(normalized, x)).max() / jnp.abs(logits).max()
print(f"product of norms {product:.2f}, relative difference {difference:.1e}")
assert difference <= 1e-5

# %% [markdown]
# ## Flax NNX
#
# Split the module into a graph and its state. The state is a parameter tree like any other.


# %%
class Residual(nnx.Module):
    def __init__(self, *, rngs):
        self.stem = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.inside = nnx.Conv(8, 8, (3, 3), use_bias=False, rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.stem(images))
        x = nnx.relu(x + self.inside(x))
        return self.head(x.mean(axis=(1, 2)))


graph, state = nnx.split(Residual(rngs=nnx.Rngs(0)))


def apply_fn(state, images):
    return nnx.merge(graph, state)(images)


structure = normjax.trace_structure(apply_fn, state, x)
print(structure)

# %% [markdown]
# This network is residual, and its trace shows the consequence: in `x + inside(x)`, the second term
# cannot be scaled alone. Normalization is refused.

# %%
try:
    normjax.normalize_params(state, structure=structure)
except ValueError as error:
    print(error)
else:
    raise AssertionError("a residual network was not refused")

# %% [markdown]
# With `tied="keep"`, the free layers are normalized and the others stay unchanged. The equation
# still holds; the product of norms is that of the free layers alone.

# %%
normalized = normjax.normalize_params(state, structure=structure, tied="keep")
product = normjax.product_norm(state, structure=structure, tied="keep")
logits = apply_fn(state, x)
difference = jnp.abs(logits - product * apply_fn(normalized, x)).max() / jnp.abs(logits).max()
print(list(normjax.param_norms(state, structure=structure, tied="keep")))
print(f"product of norms {product:.2f}, relative difference {difference:.1e}")
assert difference <= 1e-5

# %% [markdown]
# ## PyTorch
#
# `normjax.torch` traces a module and normalizes its `state_dict`. `to_arrays` turns the state_dict
# into the tree of arrays that all other functions take. `normjax.torch` needs the extra `torch`:
# `pip install 'normjax[torch]'`. This part is skipped where PyTorch is not installed.

# %%
if importlib.util.find_spec("torch") is None:
    print("Skipped: PyTorch is not installed.")
else:
    import torch

    import normjax.torch

    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 6 * 6, 10),
    ).eval()
    images = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    structure = normjax.torch.trace_structure(module, images)
    print(structure)

    arrays = normjax.torch.to_arrays(module.state_dict())
    product = float(normjax.product_norm(arrays, structure=structure))
    with torch.no_grad():
        logits = module(images)
        normalized = normjax.torch.normalize_params(module.state_dict(), structure=structure)
        module.load_state_dict(normalized)
        difference = (logits - product * module(images)).abs().max() / logits.abs().max()
    print(f"product of norms {product:.2f}, relative difference {difference:.1e}")
    assert difference <= 1e-5

# %% [markdown]
# ## What is refused
#
# A network that is not homogeneous in its weights satisfies no such equation. The refusal names the
# weights, the operation and the line.


# %%
class Tanh(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(jnp.tanh(nn.Dense(16)(images.reshape(len(images), -1))))


variables = Tanh().init(jax.random.key(0), x)
structure = normjax.trace_structure(Tanh().apply, variables, x)
print(structure)
assert not structure.is_certified
