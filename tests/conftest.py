"""Settings of the whole test run, made before JAX starts, and the experiment as tests call it."""

import gc
import os
import resource
import shutil
import tempfile
from pathlib import Path

import pytest

# Two CPU devices, so that members are sharded over devices on any machine: the settings that
# `processes.prepare_cpu` makes on two cores. JAX_PLATFORMS=cuda runs the tests on a GPU.
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

# Two workers share two cores; threads of BLAS that wait for each other took several times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# The workers' allocator keeps fewer pools, which otherwise hold a gigabyte of freed memory.
os.environ.setdefault("MALLOC_ARENA_MAX", "2")

# What one process has compiled, the other workers and the processes that tests start read.
COMPILED = "JAX_COMPILATION_CACHE_DIR"
IS_OURS = COMPILED not in os.environ
if IS_OURS:
    os.environ[COMPILED] = tempfile.mkdtemp(prefix="normjax_compiled_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"

import jax  # noqa: E402 - reads the variables above

# Compiling takes most of the time, hence without LLVM's optimizations, each program in one piece,
# and with XLA's older emitters where it still has them.
FAST_COMPILER = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):
    FAST_COMPILER += " --xla_cpu_use_fusion_emitters=false"

STATM = Path("/proc/self/statm")  # in pages: all, resident, ...
MEMORY = {"limit": 1.7e9}  # bytes


def pytest_configure(config):
    """Unexpected warnings are errors; on a CPU, only `-m numerics` has the compiler of users."""
    config.addinivalue_line("filterwarnings", "error")
    is_wanted = os.environ["JAX_PLATFORMS"] == "cpu" and "numerics" not in config.option.markexpr
    if is_wanted and FAST_COMPILER not in os.environ["XLA_FLAGS"]:
        os.environ["XLA_FLAGS"] = f"{FAST_COMPILER} {os.environ['XLA_FLAGS']}"


def pytest_unconfigure():
    """The process that made the folder of compiled programs removes it."""
    if IS_OURS:
        shutil.rmtree(os.environ[COMPILED], ignore_errors=True)


def resident_bytes():
    """The memory of this process (on Linux, else 0)."""
    return int(STATM.read_text().split()[1]) * resource.getpagesize() if STATM.exists() else 0


@pytest.fixture(autouse=True)
def bounded_memory():
    """JAX keeps every compiled program; they are dropped once the process is large.

    Dropping takes a second, and its memory is used again rather than given back: without the
    margin, a process at the limit would drop them after each test.
    """
    yield
    if resident_bytes() > MEMORY["limit"]:
        jax.clear_caches()
        gc.collect()
        MEMORY["limit"] = max(MEMORY["limit"], resident_bytes() + 0.3e9)


@pytest.fixture(scope="session")
def invoke():
    """`invoke(*arguments, main=..., figures=False)`: a sweep's command in this process.

    Drawing takes longer than a small sweep, so figures are drawn only if they are asked for. Raises
    SystemExit where the command fails; its code is then the line for stderr.
    """
    from absl.flags import FlagValues

    from experiments import flags, random_pretrain
    from normjax.plots import paper
    from normjax.training.config import SweepConfig

    def invoke(*arguments, main=random_pretrain.main, figures=False):
        values = flags.define(SweepConfig, FlagValues(), workdir="runs/random_pretrain")
        argv = ["random_pretrain", *map(str, arguments)]
        with pytest.MonkeyPatch.context() as patch:
            if not figures:
                patch.setattr(paper, "draw_figures", lambda *_: [])
            flags.call(main, flags.parse(SweepConfig, argv, values))

    return invoke


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """No test reads or writes the user's cache and data folders, or goes through a proxy."""
    monkeypatch.setenv("NORMJAX_CACHE_DIR", str(tmp_path / "own_cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    for scheme in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(scheme, raising=False)
        monkeypatch.delenv(scheme.upper(), raising=False)
