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
# # Settings of a sweep
#
# The fields of `normjax.SweepConfig`. On the command line each is a flag of the same name, with
# lists separated by commas: `--corruption_levels=0,0.5`.

# %% tags=["hide_input"]
import dataclasses

import pandas as pd

import normjax

fields = dataclasses.fields(normjax.SweepConfig)
pd.DataFrame(
    {
        "default": [
            "required" if f.default is dataclasses.MISSING else repr(f.default) for f in fields
        ],
        "meaning": [f.metadata["help"] for f in fields],
        "allowed": [", ".join(f.metadata["allowed"] or ()) for f in fields],
    },
    index=[f.name for f in fields],
).style.set_properties(**{"text-align": "left"})
