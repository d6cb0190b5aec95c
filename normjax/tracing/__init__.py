"""Read the structure of a network from its computation.

`trace.py` is the entry point, `walk.py` goes through a jaxpr, and `rules.py` says for each
primitive how its result scales with its operands.
"""
