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
# # Reading somebody else's results table
#
# A line of normalized losses can be judged from its table alone: no weights and no data are needed.
# The first example is a table that normjax wrote, the second one that it did not.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import normjax

# %% [markdown]
# ## A table that normjax wrote
#
# The checkout has the tables of the paper's figures at a small scale. `read_results` takes the file
# or its folder. It checks each line: a damaged or contradictory table is refused with the line
# number.

# %%
folder = "docs/small_scale/runs/convnet3"  # from the folder of the checkout
table = normjax.read_results(folder)
print(f"{table['member'].nunique()} networks, selections {sorted(table['selection'].unique())}")
table.groupby(["family", "level"])[["product_norm", "test_error"]].mean().round(3)

# %%
found = normjax.explain_line(table, selection="loss=0.0044", norm=2)
fit = found.fit_without_random_labels
low, high = fit.intervals.slope
print(f"R2 {fit.r2:.4f}, slope {fit.slope:.3f}, 95% over levels {low:.3f} to {high:.3f}")
print(f"Verdict: {found.verdict}.\nBecause {found.because}.")
print(f"Missing: {found.missing}.")

# %% [markdown]
# ## A table from a paper
#
# A published table rarely has all columns. `explain_line` needs, for each network:
#
# - its level and seed, because only networks of the same level are comparable;
# - the product of norms and both normalized losses;
# - the test error, for the rank correlations.
#
# Suppose that somebody published these numbers for ten classes. (They are randomly generated
# here; in this table, the training and test margins of a network are unrelated.)

# %%
rng = np.random.default_rng(1)
levels = np.repeat([0.0, 0.2, 0.4, 0.6, 0.8], 4)
rho = 200 * np.exp(1.5 * levels + 0.05 * rng.normal(size=20))
published = pd.DataFrame(
    {
        "corruption": levels,
        "run": np.tile(np.arange(4), 5),
        "rho": rho,
        "train": math.log(10) - (16 + rng.normal(size=20)) / rho,
        "test": math.log(10) - (10 + rng.normal(size=20)) / rho,
        "error": 0.3 + 0.2 * levels + 0.01 * rng.normal(size=20),
    }
)
published.head(3).round(4)

# %% [markdown]
# The columns get the names of `results.csv`, and all are required. Normalization changes no
# prediction, so the normalized errors are the errors; all networks fit their training labels. The
# losses as trained were not published. The normalized losses stand in for them, so the fields that
# use the losses as trained (`raw_fit` and the ranking by `train_loss`) mean nothing here. The
# verdict does not use these losses.

# %%
table = pd.DataFrame(
    {
        "experiment": "published",
        "member": np.arange(len(published)),
        "seed": published["run"],
        "family": "pretrain",
        "level": published["corruption"],
        "labels": "natural",
        "selection": "final",
        "epoch": 100,
        "norm": "2",
        "product_norm": published["rho"],
        "train_loss": published["train"],
        "test_loss": published["test"],
        "train_error": 0.0,
        "test_error": published["error"],
        "normalized_train_loss": published["train"],
        "normalized_test_loss": published["test"],
        "normalized_train_error": 0.0,
        "normalized_test_error": published["error"],
        "normalized_train_excess": published["train"] - math.log(10),
        "normalized_test_excess": published["test"] - math.log(10),
    }
)
found = normjax.explain_line(table)
print(f"R2 {found.fit.r2:.4f}, of a line in 1 / rho alone {found.divisor_fit.r2:.4f}")
print(f"Verdict: {found.verdict}.\nBecause {found.because}.")
assert found.fit.r2 > 0.9 and found.verdict != "supported"

# %% [markdown]
# R2 is high although the margins were drawn independently: this is the artifact of the shared
# divisor. The controls detect it, because within a level the margins do not vary together.

# %%
networks = pd.DataFrame([vars(network) for network in found.networks])
plt.scatter(networks["train_margin"], networks["test_margin"], c=networks["level"])
plt.xlabel("training margin")
plt.ylabel("test margin")
plt.colorbar(label="level")
plt.show()

# %% [markdown]
# Ask the authors one thing: whether the levels share their seeds (one initialization used at every
# level). The verdict assumes that networks of one level are independent, and a shared seed breaks
# this assumption.
