"""The paper's experiments as commands: `python -m experiments.random_pretrain --help`."""

import os

# Figures go to files. If the user's backend is not installed here, every command would fail.
os.environ["MPLBACKEND"] = "agg"
