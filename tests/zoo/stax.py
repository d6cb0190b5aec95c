"""stax: nested lists and tuples of arrays, without a name."""

import functools

import jax
from jax.example_libraries import stax

from tests.zoo.network import Network, random_inputs, random_leaves

NETWORKS = []


def network(name, shape, *layers, **expected):
    """Register a serial network."""
    make = functools.partial(make_stax, layers, shape)
    NETWORKS.append(Network("stax", name, "list of tuples", make, **expected))


def make_stax(layers, shape):
    """Return the function, random leaves, and inputs."""
    init, apply = stax.serial(*layers)
    params = jax.eval_shape(lambda key: init(key, shape)[1], jax.random.key(0))
    key = jax.random.key(0)  # for dropout

    return lambda params, x: apply(params, x, rng=key), random_leaves(params), random_inputs(shape)


IMAGES = (2, 8, 8, 3)
HEAD = (stax.Flatten, stax.Dense(5))

network("MLP", (4, 12), stax.Dense(16), stax.Relu, stax.Dense(8), stax.LeakyRelu, stax.Dense(5))
network(
    "convolutions and pools",
    IMAGES,
    stax.Conv(8, (3, 3), padding="SAME"),
    stax.Relu,
    stax.MaxPool((2, 2), (2, 2)),
    stax.Conv(8, (3, 3), padding="SAME"),
    stax.Relu,
    stax.AvgPool((2, 2)),
    *HEAD,
)
network(
    "channels first",
    (2, 3, 8, 8),
    stax.GeneralConv(("NCHW", "OIHW", "NCHW"), 8, (3, 3)),
    stax.Relu,
    stax.GeneralConv(("NCHW", "OIHW", "NCHW"), 6, (3, 3)),
    stax.Relu,
    *HEAD,
)
network(
    "transposed convolution",
    IMAGES,
    stax.Conv(8, (3, 3), (2, 2)),
    stax.Relu,
    stax.ConvTranspose(3, (3, 3), (2, 2)),
)
network(
    "dropout", (4, 12), stax.Dense(16), stax.Relu, stax.Dropout(0.5, mode="test"), stax.Dense(5)
)
network(
    "sum of branches",
    (4, 12),
    stax.Dense(16),
    stax.FanOut(2),
    stax.parallel(stax.serial(stax.Dense(16), stax.Relu), stax.Identity),
    stax.FanInSum,
    stax.Dense(5),
    refused={"2/0/0/0": "add"},
)
network(
    "concatenated branches",
    (4, 12),
    stax.FanOut(2),
    stax.parallel(stax.serial(stax.Dense(8), stax.Relu), stax.serial(stax.Dense(8), stax.Relu)),
    stax.FanInConcat(),
    stax.Dense(5),
    refused={"1/1/0/0": "concatenate"},
)
network(
    "batch norm of the batch",
    IMAGES,
    stax.Conv(8, (3, 3)),
    stax.BatchNorm(),
    stax.Relu,
    *HEAD,
    refused={"0/0": "add"},
)
network(
    "log softmax",
    (4, 12),
    stax.Dense(16),
    stax.Relu,
    stax.Dense(5),
    stax.LogSoftmax,
    refused={"2/0": "exp"},
)
network("softplus", (4, 12), stax.Dense(16), stax.Softplus, stax.Dense(5), refused={"0/0": "exp"})
