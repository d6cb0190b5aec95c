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


def pytest_configure(config):
    """A warning that nobody expects is an error."""
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture(scope="session")
def invoke():
    """`invoke(*arguments, main=...)`: the experiment in this process, as a command line runs it.

    Returns what is after the run on a terminal: nothing where all went well; raises SystemExit,
    whose code is the line for stderr, where it did not.
    """
    from experiments import flags, random_pretrain

    def invoke(*arguments, main=random_pretrain.main):
        flags.define_flags("random_pretrain")  # again for each run: absl keeps values
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["random_pretrain", *map(str, arguments)])
            try:
                flags.run(main)
            except SystemExit as stop:
                if stop.code:
                    raise

    return invoke


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """No test reads or writes the user's cache and data folders."""
    monkeypatch.setenv("NORMJAX_CACHE_DIR", str(tmp_path / "own_cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "own_tfds"))
