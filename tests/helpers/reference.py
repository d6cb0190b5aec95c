"""The networks and losses once more, in numpy float64: what the tests compare with."""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def standardize(images):
    """Pixels 0..255 to [-1, 1]."""
    return np.asarray(images, np.float64) / 127.5 - 1


def conv(x, kernel, stride=1, same=False):
    """Convolution of float64 [N, H, W, C] window by window; SAME pads as XLA and TensorFlow do."""
    kernel = np.asarray(kernel, np.float64)
    if same:
        pads = [
            max((math.ceil(n / stride) - 1) * stride + k - n, 0)
            for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)
        ]
        x = np.pad(x, [(0, 0), *[(p // 2, p - p // 2) for p in pads], (0, 0)])
    windows = sliding_window_view(x, kernel.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("nhwcij,ijcf->nhwf", windows, kernel, optimize=True)


def batch_norm(x, scale, bias, mean, var):
    """Batch normalization in evaluation mode, with Flax's epsilon of 1e-5."""
    scale, bias, mean, var = (np.asarray(v, np.float64) for v in (scale, bias, mean, var))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def relu(x):
    """max(x, 0)."""
    return np.maximum(x, 0)


def convnet3_logits(params, images):
    """The 3-layer net on uint8 images, float64 [N, K]."""
    x = standardize(images)
    x = relu(conv(x, params["Conv_0"]["kernel"]) + np.asarray(params["Conv_0"]["bias"]))
    x = relu(conv(x, params["Conv_1"]["kernel"]))
    return x.reshape(len(x), -1) @ np.asarray(params["Dense_0"]["kernel"], np.float64)


def convnet5_logits(params, images, batch_stats=None):
    """The 5-layer net in evaluation mode on uint8 images, float64 [N, K]."""
    x = standardize(images)
    for i, stride in enumerate((1, 2, 2, 2)):
        layer = params[f"Conv_{i}"]
        x = conv(x, layer["kernel"], stride, same=True)
        if batch_stats is None:
            x = relu(x + np.asarray(layer["bias"]))
        else:
            name = f"BatchNorm_{i}"
            x = relu(batch_norm(x, **params[name], **batch_stats[name]))
    return conv(x, params["Conv_4"]["kernel"]).reshape(len(x), -1)


def linear_logits(params, images):
    """The linear network on uint8 images, float64 [N, K]."""
    x = standardize(images).reshape(len(images), -1)
    return x @ np.asarray(params["Dense_0"]["kernel"], np.float64)


def softmax(logits):
    """Class probabilities."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def cross_entropy(logits, labels):
    """Loss per example in nats."""
    largest = logits.max(-1)
    log_sum = largest + np.log(np.exp(logits - largest[:, None]).sum(-1))
    return log_sum - logits[np.arange(len(labels)), labels]


def excess(logits, labels):
    """Loss minus ln K per example, exact for small logits."""
    differences = logits - logits[np.arange(len(labels)), labels][:, None]
    return np.log1p(np.expm1(differences).mean(-1))


def error(logits, labels):
    """1 where the prediction is wrong."""
    return (logits.argmax(-1) != labels).astype(np.float64)


def product_norm(params, p, scale=1.0):
    """Product of the layers' entrywise norms; the first layer's bias counts in its own."""
    product = 1.0
    for depth, (_, layer) in enumerate(sorted(params.items())):
        parts = [layer["kernel"]] + ([layer["bias"]] if depth == 0 and "bias" in layer else [])
        entries = np.concatenate([np.asarray(part, np.float64).ravel() for part in parts])
        product *= np.linalg.norm(entries, p) / scale
    return product
