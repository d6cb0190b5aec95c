"""Read the structure of a network off its computation.

`trace.py` has the entry, `walk.py` goes through a jaxpr, and `rules.py` says for every primitive
how its result scales with its operands.
"""
