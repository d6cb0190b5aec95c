"""Normalized losses of deep networks predict their test performance.

The library of "A Surprising Linear Relationship Predicts Test Performance in Deep Networks" (Liao
et al. 2018, arXiv 1807.09659): pure functions on parameter trees. Names are loaded on first use,
so `import normjax` costs little more than `import jax`.
"""

import importlib
from typing import Any

_MODULE_OF = {
    "LineFit": "statistics.regression",
    "SweepConfig": "training.config",
    "absorb_batch_norm": "batch_norm",
    "balance_params": "balance",
    "check_homogeneity": "normalize",
    "classification_error": "losses",
    "conv_general_dilated": "networks.convolution",
    "corrupt_labels": "data",
    "cross_entropy": "losses",
    "excess_cross_entropy": "losses",
    "explain_line": "controls.explain",
    "fit_line": "statistics.regression",
    "load_dataset": "data",
    "load_member": "training.saved",
    "make_model": "networks.models",
    "log_product_norm": "normalize",
    "margins": "losses",
    "monitor": "losses",
    "normalize_params": "normalize",
    "param_norms": "normalize",
    "product_norm": "normalize",
    "read_results": "results.table",
    "run_sweep": "sweep",
    "spectral_norm": "norms",
    "trace_structure": "tracing.trace",
    "standardize_images": "data",
}

__version__ = "0.2.0"
__all__ = sorted([*_MODULE_OF, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Load a public name or a submodule on first use (PEP 562)."""
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f"normjax.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value
    try:
        return importlib.import_module(f"normjax.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"normjax.{name}":
            raise
        raise AttributeError(f"module 'normjax' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return __all__
