"""The examples in the docstrings of the public names, run as they stand."""

import doctest

import pytest

import normjax
from normjax import norms

# Those that need a finished run, and types.
WITHOUT_EXAMPLE = {
    "LineFit",
    "SweepConfig",
    "explain_line",
    "load_member",
    "read_results",
    "run_sweep",
}
PUBLIC = {name: getattr(normjax, name) for name in normjax.__all__ if name != "__version__"}


@pytest.mark.parametrize("name", [*sorted(set(PUBLIC) - WITHOUT_EXAMPLE), "parse_norm"])
def test_example_runs(name):
    value = PUBLIC.get(name) or getattr(norms, name)
    examples = doctest.DocTestFinder(recurse=False).find(value, name, globs={})
    assert sum(len(part.examples) for part in examples) > 0, f"{name} has no example"
    runner = doctest.DocTestRunner(verbose=False)
    report = []
    for part in examples:
        runner.run(part, out=report.append)
    assert not runner.failures, "".join(report)
