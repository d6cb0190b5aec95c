"""No trap is certified wrongly, and those that are no trap are certified."""

import pytest

from tests.structure import (  # noqa: F401 - they fill TRAPS
    traps_of_constants,
    traps_of_control_flow,
    traps_of_functions,
    traps_of_leaves,
)
from tests.structure.trap import TRAPS, check


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.apply.__name__)
def test_structure_is_as_expected(trap):
    check(trap)
