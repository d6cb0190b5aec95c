"""Normalised losses of deep networks predict their test performance.

The library of "Classical generalization bounds are surprisingly tight for Deep Networks" (Liao et
al., 2018): pure functions on trees of parameters. Names are loaded when they are first used, so
that `import normjax` costs little more than `import jax`.
"""

import importlib

_MODULE_OF = {
    "LineFit": "regression",
    "absorb_batch_norm": "normalize",
    "balance_params": "balance",
    "check_homogeneity": "normalize",
    "classification_error": "losses",
    "corrupt_labels": "data",
    "cross_entropy": "losses",
    "excess_cross_entropy": "losses",
    "fit_line": "regression",
    "load_dataset": "data",
    "load_member": "checkpoints",
    "make_model": "models",
    "margins": "losses",
    "monitor": "evaluate",
    "normalize_params": "normalize",
    "param_norms": "normalize",
    "product_norm": "normalize",
    "read_results": "results",
    "spectral_norm": "norms",
    "standardize_images": "data",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    """Loads a public name, or a submodule, at its first use (PEP 562)."""
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
