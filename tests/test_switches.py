"""JAX's global switches, which people set for other work, change no result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax
from tests.helpers.networks import mlp_params

RNG = np.random.default_rng(0)
PARAMS = mlp_params([4, 6, 3])
KERNEL = {"kernel": RNG.normal(size=(3, 2, 2, 3)).astype(np.float32), "bias": np.ones(3, "f")}
LOGITS = jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32)
LABELS = jnp.array([0, 1, 2, 2, 1])


def apply(params, x):
    names = sorted(params)
    for name in names:
        layer = params[name]
        x = x @ layer["kernel"]
        x = x + layer["bias"][None] if "bias" in layer else x
        x = x if name == names[-1] else jax.nn.relu(x)
    return x


CALLS = {
    **{
        f"norm {norm}": lambda norm=norm: normjax.normalize_params(PARAMS, norm)
        for norm in (2, 1, np.inf, 2.5, "spectral")
    },
    "spectral": lambda: normjax.spectral_norm(KERNEL, 4),
    "product": lambda: (normjax.product_norm(PARAMS), normjax.log_product_norm(PARAMS)),
    "gradient": lambda: jax.grad(lambda p: normjax.product_norm(p, 2.5))(PARAMS),
    "balance": lambda: normjax.balance_params(PARAMS),
    "losses": lambda: [
        fn(LOGITS, LABELS)
        for fn in (
            *(normjax.cross_entropy, normjax.excess_cross_entropy),
            *(normjax.margins, normjax.classification_error),
        )
    ],
    "slopes": lambda: [
        jax.grad(lambda z, fn=fn: fn(z, LABELS).sum())(LOGITS)
        for fn in (normjax.cross_entropy, normjax.excess_cross_entropy, normjax.margins)
    ],
    "monitor": lambda: normjax.monitor(PARAMS, LOGITS, LABELS),
    "check": lambda: normjax.check_homogeneity(apply, PARAMS, np.ones((2, 4), "f")).ok,
}
SWITCHES = {
    "nans": lambda: jax.debug_nans(True),
    "infs": lambda: jax.debug_infs(True),
    "no jit": lambda: jax.disable_jit(True),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_core_works_under_every_switch(call):
    expected = CALLS[call]()
    for name, switch in SWITCHES.items():
        with switch():
            found = CALLS[call]()
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_spectral_norm_without_jit_takes_no_minute(monkeypatch):
    """Its loop over frequencies is compiled nevertheless."""
    calls, svd = [], jnp.linalg.svd

    def counted(*args, **how):
        calls.append(args)
        return svd(*args, **how)

    monkeypatch.setattr(jnp.linalg, "svd", counted)
    with jax.disable_jit(True):
        normjax.spectral_norm({"kernel": RNG.normal(size=(2, 3, 2, 5)).astype(np.float32)}, 16)
    assert len(calls) == 1
