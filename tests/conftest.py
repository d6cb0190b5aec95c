"""Settings of the whole test run, made before JAX starts, and the experiment as tests call it."""

import os
import sys

import pytest

# Two CPU devices, so that members are sharded over devices on any machine; the settings are those
# of `experiments.flags.prepare_cpu` on two cores. JAX_PLATFORMS=cuda runs the tests on a GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
        " --xla_cpu_multi_thread_eigen=false"
    ).strip()

# Settings that some users of JAX have, and under which everything must work: in environment
# variables, so that the processes that tests start have them too.
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"


def pytest_configure(config):
    """A warning that nobody expects is an error."""
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture(scope="session")
def invoke():
    """`invoke(*arguments, main=...)`: the experiment in this process, as a command line runs it.

    Raises SystemExit where it fails; its code is then the line for stderr.
    """
    from absl.testing import flagsaver

    from experiments import flags, random_pretrain

    flags.define_flags("random_pretrain")

    def invoke(*arguments, main=random_pretrain.main):
        # absl keeps the values of a run for the next one, which a process does not have.
        with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["random_pretrain", *map(str, arguments)])
            try:
                flags.run(main)
            except SystemExit as stop:
                if stop.code:
                    raise

    return invoke


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """No test reads or writes the user's cache and data folders, or goes through a proxy."""
    monkeypatch.setenv("NORMJAX_CACHE_DIR", str(tmp_path / "own_cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    for scheme in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(scheme, raising=False)
        monkeypatch.delenv(scheme.upper(), raising=False)
