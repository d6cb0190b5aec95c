"""Compare normjax with PyTorch and plain Flax: `python -m benchmarks.run`."""
