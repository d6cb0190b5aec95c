"""Random programs: no certificate is wrong, and many programs are certified."""

from collections import Counter

import pytest
from hypothesis import given

from tests.helpers.damage import fuzz
from tests.helpers.random_programs import programs
from tests.structure.fuzzed import examine


@pytest.mark.parametrize(
    ("count", "num_values", "num_primitives", "share"),
    [(100, 1, 65, 0.3), pytest.param(800, 3, 95, 0.4, marks=pytest.mark.slow)],
)
def test_no_certificate_is_wrong(count, num_values, num_primitives, share):
    seen, names = Counter(), set()

    @fuzz(max_examples=count)
    @given(programs())
    def run(program):
        structure, is_tested, found = examine(program, num_values)
        names.update(found)
        seen["programs"] += 1
        seen["tested"] += is_tested
        seen["certified"] += structure.is_certified and is_tested

    run()
    assert seen["programs"] >= count
    assert seen["tested"] > 0.6 * count
    assert seen["certified"] > share * count
    assert len(names) >= num_primitives
