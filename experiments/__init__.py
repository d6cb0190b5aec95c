"""The paper's experiments as commands: `python -m experiments.random_pretrain --help`."""
