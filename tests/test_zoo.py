"""Networks of seven libraries as their users write them: certified and exact, or refused.

`python -m tests.zoo` prints what is measured of each; docs/networks.md has it.
"""

import time
from pathlib import Path

import pytest

import normjax
from tests.zoo.catalog import NEEDS, full_size, is_installed, load_networks
from tests.zoo.measure import measure

ROOT = Path(__file__).parents[1]
LARGE = {"VGG", "ResNet18", "ResNet50"}  # seconds to compile

every_file = pytest.mark.parametrize("file", NEEDS)


def networks_of(file):
    """The networks of a file; skip where the library is not installed."""
    if not is_installed(file):
        pytest.skip(f"{NEEDS[file]} is not installed")
    return load_networks(file)


def assert_as_expected(networks, **how):
    failures = [
        f"{network.library}: {network.name}: {failure}"
        for network in networks
        for failure in measure(network, **how).failures
    ]
    assert not failures, "\n".join(failures)


@every_file
def test_structures_are_as_expected_and_exact_bit_by_bit(file):
    networks = [network for network in networks_of(file) if network.name not in LARGE]
    assert_as_expected(networks, normalize=False)


@pytest.mark.parametrize("file", ["linen_images", "equinox", "torch_networks"])
def test_normalized_network_with_batch_norm_is_the_same_function(file):
    assert_as_expected([next(network for network in networks_of(file) if network.layers)])


@pytest.mark.slow
@every_file
def test_all_normalized_networks_are_the_same_functions(file):
    assert_as_expected(networks_of(file))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seconds"), [("VGG16", 1), ("ResNet50", 5)])
def test_large_networks_are_traced_in_seconds(name, seconds):
    network = full_size(name)
    start = time.process_time()
    structure = normjax.trace_structure(*network)
    assert time.process_time() - start < seconds
    assert structure.is_certified == (name == "VGG16")


def test_the_documented_table_lists_these_networks():
    """`python -m tests.zoo` prints it anew."""
    text = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    networks = [n for file in NEEDS if is_installed(file) for n in load_networks(file)]
    libraries = {network.library for network in networks}
    documented = [tuple(row[:3]) for row in rows if row[0] in libraries]
    assert documented == [(n.library, n.name, n.container) for n in networks]
    assert len(rows) > 90
