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
# # The monitor in an Optax loop
#
# The paper recommends watching the training loss of the normalized network. `normjax.monitor`
# computes it from the logits that a training step has anyway: one pass over the parameters, none
# over the data. It works inside `jit`.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import normjax

digits = normjax.load_dataset("digits", train_size=500)
images, test_images = map(normjax.standardize_images, (digits.train.images, digits.test.images))
rng = np.random.default_rng(0)
labels, corrupted = normjax.corrupt_labels(
    digits.train.labels, 0.2, method="swap", num_classes=10, rng=rng
)
print(f"{len(images)} training images, {len(corrupted)} of them with labels swapped")


# %%
class Mlp(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = images.reshape(len(images), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(128)(x))
        return nn.Dense(10)(x)


model = Mlp()
params = model.init(jax.random.key(0), images[:1])
optimizer = optax.sgd(0.05, momentum=0.9)
structure = normjax.trace_structure(model.apply, params, images[:1])  # once, before training
print(structure)

# %% [markdown]
# The step is the usual one plus one line: `normjax.monitor` with the parameters and the logits of
# the step.


# %%
@jax.jit
def train_step(params, state, images, labels):
    def mean_loss(params):
        logits = model.apply(params, images)
        return normjax.cross_entropy(logits, labels).mean(), logits

    (loss, logits), gradient = jax.value_and_grad(mean_loss, has_aux=True)(params)
    seen = normjax.monitor(params, logits, labels, structure=structure)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss, seen


@jax.jit
def test_loss(params):
    return normjax.cross_entropy(model.apply(params, test_images), digits.test.labels).mean()


# %%
state, curves = optimizer.init(params), []
for _epoch in range(60):
    steps = []
    for batch in rng.permutation(len(images)).reshape(-1, 50):
        params, state, loss, seen = train_step(params, state, images[batch], labels[batch])
        steps.append([loss, seen.normalized_excess, seen.log_product_norm])
    curves.append([*np.mean(steps, axis=0), test_loss(params)])
losses, excess, log_product, tests = np.array(curves).T

# %% [markdown]
# The normalized loss stays near ln K, the loss of a uniform guess, because the normalized logits
# are small. `normalized_excess` is the distance of the loss from ln K, computed without
# cancellation. This is the number to plot.

# %%
figure, axes = plt.subplots(1, 4, figsize=(11, 2.8), layout="constrained")
for axis, values, title in zip(
    axes,
    (losses, excess, log_product, tests),
    ("training loss", "normalized loss - ln K", "ln of the product of norms", "test loss"),
    strict=True,
):
    axis.plot(values)
    axis.set_title(title)
    axis.set_xlabel("epoch")
plt.show()

# %%
print(f"test loss: least at epoch {tests.argmin()}, {tests.min():.3f}; last {tests[-1]:.3f}")
print(f"normalized training loss: least at epoch {excess.argmin()}")
print(f"training loss: least at epoch {losses.argmin()}")

# %% [markdown]
# With a fifth of the labels swapped, the test loss rises again while the training loss keeps
# falling. Whether the normalized loss shows this turning point is a question for each run, not a
# law: compare the three lines above. The monitor's numbers agree with the definition:

# %%
normalized = normjax.normalize_params(params, structure=structure)
product = normjax.product_norm(params, structure=structure)
logits = model.apply(params, images)
seen = normjax.monitor(params, logits, labels, structure=structure)
direct = normjax.excess_cross_entropy(model.apply(normalized, images), labels).mean()
print(f"monitor {seen.normalized_excess:.6g}, normalized network {direct:.6g}")
assert jnp.allclose(seen.normalized_excess, direct, rtol=1e-4)
assert jnp.allclose(seen.product_norm, product, rtol=1e-5)
