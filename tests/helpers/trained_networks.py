"""Small trained networks, as measures of generalization see them."""

import jax
import numpy as np

import normjax
from normjax.generalization.absorbed import check_layers
from normjax.generalization.sample import Sample
from normjax.generalization.sharpness import Sharpness
from normjax.generalization.trained_network import TrainedNetwork
from tests.helpers.networks import (
    Convnet3,
    Mlp,
    apply_fn,
    images,
    mlp_params,
    random_like,
    random_variables,
)

SHARPNESS = Sharpness(0.05, 0.3, 0.002, 0.04, 0.7, 0.9)
SIDE, CLASSES = 8, 5


def network_of(params, start, function, x, labels=None):
    """A network with its structure, and all its training inputs as the sample.

    Without labels, they are its own classes but for a few.
    """
    x = np.asarray(x, np.float32)
    structure = normjax.trace_structure(function, params, x[:2])
    check_layers(structure)
    logits = np.asarray(function(params, x))
    if labels is None:
        labels = logits.argmax(-1).astype(np.int32)
        labels[:4] = (labels[:4] + 1) % logits.shape[1]
    return TrainedNetwork(
        params=params,
        initial_params=start,
        logits=logits,
        labels=labels,
        apply_fn=function,
        input_shape=x.shape[1:],
        structure=structure,
        sample=Sample(x, labels, 3),
        sharpness=SHARPNESS,
    )


def trained_convnet3(seed=0, num_examples=60):
    """A small 3-layer net whose labels are its own classes, but for a few examples."""
    model, x = Convnet3(), images((num_examples, SIDE, SIDE, 3))
    params = random_variables(model, x, seed)["params"]
    start = jax.tree.map(lambda w, other: 0.3 * w + other, params, random_like(params, seed + 1))
    return network_of(params, start, apply_fn(model), x)


def trained_mlp(widths=(6, 12, 9, 4), seed=0, num_examples=90):
    """A network of dense layers, each with a bias, in the same state."""
    params = mlp_params(widths, seed)
    x = np.random.default_rng(seed).standard_normal((num_examples, widths[0]))
    return network_of(params, random_like(params, seed + 1), apply_fn(Mlp(widths[1:])), x)
