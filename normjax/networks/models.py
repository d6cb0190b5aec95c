"""The paper's networks as Flax Linen modules, and their initializers.

All networks are positively homogeneous in each layer's weights (eq. 2): they consist only of
convolutions, dense layers, ReLU and batch normalization, which is linear in evaluation mode.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.networks.batch_norm_block import (
    Activations,
    conv_activations,
    conv_batch_norm,
)
from normjax.networks.convolution import conv2d
from normjax.types import Array

MODEL_NAMES = ("convnet3", "convnet5", "linear")
_LAYERS = ((32, 1), (64, 2), (64, 2), (128, 2))  # of the 5-layer net: (filters, stride)


def make_model(
    name: str,
    num_classes: int = 10,
    *,
    batch_norm: bool = False,
    init_std: float | Array | None = None,
) -> nn.Module:
    """Make one of the paper's networks, a Linen module for float images [N, H, W, C].

    Examples:
      >>> import jax
      >>> import normjax
      >>> model = normjax.make_model("convnet3")
      >>> images = jax.numpy.ones((2, 32, 32, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
      154464
      >>> jax.eval_shape(model.apply, variables, images).shape
      (2, 10)

    Args:
      name: "convnet3" (the 3-layer net), "convnet5" (the 5-layer net) or "linear".
      num_classes: the number of logits K.
      batch_norm: batch normalization after every layer except the last; only for "convnet5".
      init_std: None draws kernels and biases from PyTorch's default, U(-1/sqrt(fan_in),
        1/sqrt(fan_in)); a number, possibly traced, draws them from N(0, init_std^2).

    Returns:
      A module with `init(key, images)` and `apply(variables, images, train=False)`; the logits are
      float [N, num_classes].

    Raises:
      ValueError: an unknown name, or `batch_norm` for a network that does not support it.
    """
    if name not in MODEL_NAMES:
        raise ValueError(f"unknown model {name!r}; allowed: {', '.join(MODEL_NAMES)}")
    if name == "convnet5":
        return ConvNet5(num_classes, init_std, batch_norm)
    if batch_norm:
        raise ValueError(f"model {name!r} has no batch normalization; only convnet5 does")
    return (ConvNet3 if name == "convnet3" else Linear)(num_classes, init_std)


class ConvNet3(nn.Module):
    """The 3-layer net of figures 3-6 and 9-11: two VALID convolutions of 24 filters, a dense layer.

    It has stride 1, no pooling, and a bias only in the first layer: 154,464 parameters for 32x32x3
    and 10 classes. Kernels are 5x5 (as in the paper), or 3x3 for images below 12 pixels.
    """

    num_classes: int
    init_std: Any = None
    algorithm: str = "platform"

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        """Map float images [N, H, W, C] to logits [N, num_classes]; `train` has no effect."""
        kernel_size = 5 if min(images.shape[1:3]) >= 12 else 3
        x = nn.relu(self._conv(images, kernel_size, use_bias=True))
        x = nn.relu(self._conv(x, kernel_size, use_bias=False))
        return _dense(x, self.num_classes, self.init_std)

    def _conv(self, x: Array, kernel_size: int, use_bias: bool) -> Array:
        how = (self.init_std, self.algorithm)
        return _conv(x, 24, kernel_size, 1, "VALID", *how, use_bias=use_bias)


class ConvNet5(nn.Module):
    """The 5-layer net of convolutions without pooling (figures 1, 2, 7, 8, 12-15).

    The paper does not specify widths and strides. This network has 3x3 SAME convolutions of 32, 64,
    64 and 128 filters with strides 1, 2, 2, 2, then a VALID convolution of the remaining size to
    the logits. With `batch_norm`, batch normalization follows each of the first four layers, which
    have no bias. Without it they have a bias: the module takes the parameters from
    `absorb_batch_norm`.
    """

    num_classes: int
    init_std: Any = None
    batch_norm: bool = False
    algorithm: str = "platform"
    axis_name: str | None = None  # of the devices that share a batch, as in `nn.BatchNorm`

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        """Map float images [N, H, W, C] to logits [N, num_classes].

        Args:
          images: standardized images.
          train: whether batch normalization uses the batch statistics and updates the running ones.
          mask: bool [N], False for examples to exclude from the statistics.
        """
        if self.batch_norm and train and not self.is_initializing():
            return self._train(images, mask)
        x, how = images, (self.init_std, self.algorithm)
        for features, stride in _LAYERS:
            x = _conv(x, features, 3, stride, "SAME", *how, use_bias=not self.batch_norm)
            if self.batch_norm:
                x = nn.BatchNorm(use_running_average=True)(x)
            x = nn.relu(x)
        x = _conv(x, self.num_classes, x.shape[1:3], 1, "VALID", *how, use_bias=False)
        return x.reshape(x.shape[0], self.num_classes)

    def _train(self, images: Array, mask: Array | None) -> Array:
        """Apply the layers with batch normalization in training mode; update its statistics."""
        ones = jnp.ones(len(images), images.dtype)
        weights = ones if mask is None else mask.astype(images.dtype)
        x = Activations(images)
        for i, (_, stride) in enumerate(_LAYERS):
            kernel = self.get_variable("params", f"Conv_{i}")["kernel"]
            affine = self.get_variable("params", f"BatchNorm_{i}")
            x, moments = conv_batch_norm(
                x,
                kernel,
                **affine,
                weights=weights,
                strides=(stride, stride),
                padding="SAME",
                algorithm=self.algorithm,
                axis_name=self.axis_name,
            )
            running = self.get_variable("batch_stats", f"BatchNorm_{i}")
            running = {
                name: 0.9 * running[name] + 0.1 * new for name, new in moments._asdict().items()
            }
            self.put_variable("batch_stats", f"BatchNorm_{i}", running)
        kernel = self.get_variable("params", f"Conv_{len(_LAYERS)}")["kernel"]
        logits = conv_activations(x, kernel, algorithm=self.algorithm)
        return logits.reshape(len(images), self.num_classes)


class Linear(nn.Module):
    """The linear network of section 3.1.1: a dense layer without bias on flattened images."""

    num_classes: int
    init_std: Any = None

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        """Map float images [N, ...] to logits [N, num_classes]; `train` has no effect."""
        return _dense(images, self.num_classes, self.init_std)


def _conv(x, features, kernel_size, stride, padding, init_std, algorithm, *, use_bias):
    """Apply an `nn.Conv` whose convolution is `conv2d`."""

    def convolve(lhs, rhs, window_strides, padding, **_):  # no dilation, no groups
        return conv2d(lhs, rhs, strides=window_strides, padding=padding, algorithm=algorithm)

    if isinstance(kernel_size, int):
        kernel_size = (kernel_size, kernel_size)
    init = _initializer(init_std, fan_in=math.prod(kernel_size) * x.shape[-1])
    return nn.Conv(
        features,
        kernel_size,
        strides=stride,
        padding=padding,
        use_bias=use_bias,
        kernel_init=init,
        bias_init=init,
        conv_general_dilated=convolve,
    )(x)


def _dense(x, features, init_std):
    """Apply a dense layer without bias to the flattened examples, in float32 as PyTorch does."""
    x = x.reshape(x.shape[0], -1)
    init = _initializer(init_std, x.shape[-1])
    return nn.Dense(features, use_bias=False, kernel_init=init, precision="highest")(x)


def _initializer(init_std, fan_in):
    """Return the initializer N(0, init_std^2), or PyTorch's default if `init_std` is None."""

    def init(key, shape, dtype=jnp.float32):
        if init_std is not None:
            return init_std * jax.random.normal(key, shape, dtype)
        bound = 1.0 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
