"""The factors in which networks differ by design."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

REPEAT = "seed"
"""The factor of repetitions; all others are hyperparameters."""

Factors = Mapping[str, Sequence[str]]
"""{name: the value of each of n networks}."""


def hyperparameters(factors: Mapping[str, T]) -> dict[str, T]:
    """Return the entries of all factors except that of repetitions."""
    return {name: values for name, values in factors.items() if name != REPEAT}


def groups_of(factors: Factors, names: Sequence[str]) -> dict[tuple[str, ...], list[int]]:
    """Return the positions of the networks, grouped by their values of these factors."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i in range(len(next(iter(factors.values())))):
        groups.setdefault(tuple(factors[name][i] for name in names), []).append(i)
    return groups


def check_factors(factors: Factors) -> None:
    """Raise ValueError if two networks agree in all factors."""
    if factors and (repeated := [g for g in groups_of(factors, list(factors)).values() if g[1:]]):
        first, second, *_ = repeated[0]
        raise ValueError(f"networks {first} and {second} agree in all factors")
