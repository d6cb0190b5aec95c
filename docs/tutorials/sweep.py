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
# # A sweep from Python and its verdict
#
# A sweep trains many networks at once. Each is first trained on partly corrupted labels and then on
# the true labels until it fits them, so that all have a training error of zero and different test
# errors. The question is whether the training loss of the normalized networks predicts their test
# loss, and whether this is more than an artifact of the norms that both are divided by.
#
# This sweep has 8 small networks on 250 images of 8x8 digits, so that it takes less than a minute.

# %%
import contextlib
import io
import tempfile

import matplotlib.pyplot as plt
import numpy as np

import normjax

config = normjax.SweepConfig(
    workdir=tempfile.mkdtemp(),  # a folder that you keep, such as "runs/mine"
    train_size=250,
    corruption_levels=(0.0, 0.25, 0.5, 1.0),
    num_seeds=2,
    pretrain_epochs=10,
    epochs=25,
    batch_size=25,
    learning_rate=0.05,
)
with contextlib.redirect_stderr(io.StringIO()):  # hides a line per epoch
    run = normjax.run_sweep(config)

# %% [markdown]
# `run_sweep` writes one folder: the table, the analysis, the figures, the networks and a page,
# `report.html`, that opens without a network connection. The same call with `resume=True` continues
# a run that was stopped, and returns a finished one at once.

# %%
print(*sorted(path.name for path in run.run_dir.glob("[!.]*")))

# %% [markdown]
# ## The table
#
# `results.csv` has a row for each network, selection (here the last epoch) and norm.

# %%
table = normjax.read_results(run.run_dir)
table = table[table["norm"] == "2"]
shown = ["level", "seed", "product_norm", "train_loss", "test_loss", "test_error"]
table[[*shown, "normalized_train_loss", "normalized_test_loss"]].round(4)

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for axis, kind in zip(axes, ("", "normalized_"), strict=True):
    points = axis.scatter(table[f"{kind}train_loss"], table[f"{kind}test_loss"], c=table["level"])
    axis.set_xlabel("training loss, nats")
    axis.locator_params(axis="x", nbins=4)
    axis.set_title("normalized" if kind else "as trained")
axes[0].set_ylabel("test loss, nats")
figure.colorbar(points, label="corruption level")
plt.show()

# %% [markdown]
# ## The line and the verdict
#
# The normalized losses lie on a line. That alone proves little: both axes are divided by the same
# product of norms, and two quantities with a common divisor line up if the divisor varies enough.
# `explain_line` tests the line against that explanation.

# %%
found = normjax.explain_line(run.run_dir)
print(f"R2 of the normalized losses {found.fit.r2:.4f}, slope {found.fit.slope:.3f}")
print(f"R2 of a line in 1 / product of norms alone {found.divisor_fit.r2:.4f}")
print(f"Verdict: {found.verdict}.\nBecause {found.because}.")
print(f"Missing: {found.missing or 'nothing'}.")

# %% [markdown]
# The verdict is *supported*, *artifact of the shared divisor* or *undecided*. Two seeds per level
# are few: `missing` says what would decide. All controls are fields of `found`, for example how the
# training loss, the product of norms and the mean margin rank the test errors.

# %%
for measure, ranking in found.error_ranking.items():
    print(f"{measure:24} tau {ranking.kendall:5.2f}")

# %% [markdown]
# ## A trained network
#
# `load_member` returns one of the networks with its traced structure.

# %%
model, variables = normjax.load_member(run.run_dir, member=3)
digits = normjax.load_dataset("digits")
logits = model.apply(variables, normjax.standardize_images(digits.test.images))
error = float(normjax.classification_error(logits, digits.test.labels).mean())
print(model.structure)
print(f"test error {error:.4f}")
assert np.isclose(error, table.set_index("member")["test_error"][3])
