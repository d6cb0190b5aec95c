"""Train many networks at once: configuration, members, steps, evaluation, checkpoints, records.

`normjax.run_sweep` is the entry point.
"""
