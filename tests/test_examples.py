"""The examples in the docstrings of the public names, run as they stand."""

import doctest

import pytest

import normjax
from normjax import formatting, norms

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


OTHERS = [norms.parse_norm, formatting.number, formatting.fixed, formatting.percent]
EXAMPLES = {name: PUBLIC[name] for name in sorted(set(PUBLIC) - WITHOUT_EXAMPLE)}
EXAMPLES |= {value.__name__: value for value in OTHERS}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name):
    value = EXAMPLES[name]
    examples = doctest.DocTestFinder(recurse=False).find(value, name, globs={})
    assert sum(len(part.examples) for part in examples) > 0, f"{name} has no example"
    runner = doctest.DocTestRunner(verbose=False)
    report = []
    for part in examples:
        runner.run(part, out=report.append)
    assert not runner.failures, "".join(report)
