"""What a user meets first, with nothing installed but the wheel; run by `make wheel`."""

import importlib
import importlib.metadata
import pkgutil
import sys
import tempfile
from pathlib import Path

import numpy as np

import normjax

NEEDS_TORCH = "normjax.torch"


def main() -> None:
    """Import every module, normalize a network, run a sweep, and ask for extras that are absent."""
    assert Path(normjax.__file__).is_relative_to(sys.prefix), normjax.__file__
    assert importlib.metadata.version("normjax") == normjax.__version__
    names = {module.name for module in pkgutil.walk_packages(normjax.__path__, "normjax.")}
    for name in sorted(names - {NEEDS_TORCH}):
        importlib.import_module(name)
    assert "pip install 'normjax[torch]'" in error_of(importlib.import_module, NEEDS_TORCH)

    params = {"Dense_0": {"kernel": np.full((4, 9), 2.0, np.float32)}}
    normalized = normjax.normalize_params(params)["Dense_0"]["kernel"]
    np.testing.assert_allclose(normalized, 1 / 6, rtol=1e-6)

    with tempfile.TemporaryDirectory() as folder:
        few = {"train_size": 60, "test_size": 30, "corruption_levels": (0.0, 0.5, 1.0)}
        how = {"model": "linear", "pretrain_epochs": 1, "epochs": 2, "batch_size": 20}
        workdir = Path(folder) / "run"
        config = normjax.SweepConfig(workdir, tensorboard=True, **few, **how)
        said = error_of(normjax.run_sweep, config)
        assert "pip install 'normjax[tensorboard]'" in said and not workdir.exists()
        normjax.run_sweep(normjax.SweepConfig(workdir, **few, **how))
        assert len(normjax.read_results(workdir)) == 3 * 2  # networks and norms
        assert normjax.explain_line(workdir).verdict
        assert "data:image/png;base64," in (workdir / "report.html").read_text(encoding="utf-8")
    print(f"normjax {normjax.__version__}: {len(names)} modules, a sweep and its page")


def error_of(function, argument):
    """The text of the error that a call ends with."""
    try:
        function(argument)
    except (ImportError, ValueError) as error:
        return str(error)
    raise AssertionError(f"no error from {argument}")


if __name__ == "__main__":
    main()
