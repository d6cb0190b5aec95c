"""Many networks at once: configuration, members, training, evaluation, checkpoints, and the run
that ties them together. `normjax.run_sweep` is the way in."""
