"""Measures normjax against PyTorch and plain Flax: `python -m benchmarks.run`."""
