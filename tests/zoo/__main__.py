"""`python -m tests.zoo`: measure all networks of the zoo; print docs/networks.md."""

import os
import re
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX is imported

import numpy as np

import normjax
from tests.zoo.catalog import NEEDS, full_size, is_installed, load_networks
from tests.zoo.measure import LARGEST_ERROR, Result, measure

SHOWN = 2  # problems of one network

PAGE = """\
# Networks, certified or refused

`python -m tests.zoo > docs/networks.md` writes this page.

**{total} networks: {certified} certified, {refused} refused.**
The largest error after normalization is {float32:.1e} in float32 and {bfloat16:.1e} in bfloat16.
{expected} of {total} are as the zoo (`tests/zoo`) expects, and their outputs are equal bit by bit
when layers are scaled by powers of two. With powers of 3 in float64, the largest error is
{float64:.1e} ({num_float64} networks). Of {products} networks with batch normalization, the product
of norms is that of the absorbed network, computed in float64, to 1e-6.
Tracing takes {median:.0f} ms in the median and {largest:.0f} ms at most ({slowest}).
At full size, by shapes alone, VGG16 takes {vgg:.2f} s and ResNet50 {resnet:.2f} s.

- **container**: what holds the leaves. Nothing is renamed.
- **certified, or why not**: the weights that cannot be scaled on their own, and the operation that
  holds them or ties them to others.
- **layers**: how many are normalized; with `tied="keep"` where the network is not certified.
- **error**: the largest `|f(W; x) - product * f(W~; x)|`, divided by the largest `|f(W; x)|`. All
  floating-point leaves are random, biases and statistics too.
- **ms**: CPU time of `trace_structure`, the shorter of two calls.

| library | network | container | certified, or why not | layers | error | ms |
|---|---|---|---|---|---|---|
{rows}"""


def main():
    """Print the page; exit with 1 if something does not hold."""
    results = []
    for file in NEEDS:
        if not is_installed(file):
            sys.exit(f"{NEEDS[file]} is not installed: pip install 'normjax[test,torch]'")
        for network in load_networks(file):
            print(f"{network.library}: {network.name}", file=sys.stderr)
            results.append(measure(network))
    print(page(results))
    for result in results:
        for failure in result.failures:
            print(f"{result.network.library}: {result.network.name}: {failure}", file=sys.stderr)
    sys.exit(any(result.failures for result in results))


def page(results: list[Result]) -> str:
    """Return the page."""
    certified = sum(result.structure.is_certified for result in results)
    slowest = max(results, key=lambda result: result.milliseconds)
    double = [r.float64_error for r in results if r.float64_error is not None]
    errors = {
        dtype: max(r.error for r in results if r.error is not None and dtype_of(r) == dtype)
        for dtype in LARGEST_ERROR
    }
    return PAGE.format(
        total=len(results),
        certified=certified,
        refused=len(results) - certified,
        expected=sum(not result.failures for result in results),
        **errors,
        float64=max(double),
        num_float64=len(double),
        products=sum(bool(result.network.layers) for result in results),
        median=np.median([result.milliseconds for result in results]),
        largest=slowest.milliseconds,
        slowest=f"{slowest.network.library}: {slowest.network.name}",
        vgg=seconds("VGG16"),
        resnet=seconds("ResNet50"),
        rows="\n".join(map(row, results)),
    )


def seconds(name: str) -> float:
    """Return the CPU time that tracing a network of full size takes."""
    network = full_size(name)
    start = time.process_time()
    normjax.trace_structure(*network)
    return time.process_time() - start


def dtype_of(result: Result) -> str:
    """Return the dtype whose rounding a network has."""
    return "bfloat16" if "bfloat16" in result.network.name else "float32"


def row(result: Result) -> str:
    """Return a network's line of the table."""
    network, structure = result.network, result.structure
    problems = [short(problem) for problem in structure.problems]
    more = len(problems) - SHOWN
    if more > 1:
        problems[SHOWN:] = [f"{more} more"]
    cells = [
        network.library,
        network.name,
        network.container,
        "certified" if structure.is_certified else "; ".join(problems),
        str(len(structure.matrices)),
        "" if result.error is None else f"{result.error:.0e}",
        f"{result.milliseconds:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def short(problem: str) -> str:
    """Return "`Dense_0/kernel` held by `tanh`" for a problem."""
    found = re.match(r"(\S+) is (tied|held).*? by (?:'(\w+)'|([^,]+))", problem)
    if found is None:
        return problem
    leaf, verb, primitive, other = found.groups()
    return f"`{leaf}` {verb} by {f'`{primitive}`' if primitive else other}"


if __name__ == "__main__":
    main()
