"""The tables of a run: results.csv (`table`, on top of `columns`) and metrics.jsonl (`metrics`).

`tensorboard` writes the latter for TensorBoard.
"""
