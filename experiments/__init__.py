"""The paper's experiments as commands: `python -m experiments.random_pretrain --help`."""

import os

# Figures go to files. A backend of the user's that is not installed here would end any command.
os.environ["MPLBACKEND"] = "agg"
