"""Flax Linen: networks of images, with batch normalization, skips and branches."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from tests.zoo.linen import batch_norm, layer, linen
from tests.zoo.network import Layer

NETWORKS = []
linen = functools.partial(linen, register=NETWORKS)
BatchNorm = functools.partial(nn.BatchNorm, use_running_average=True)

IMAGES = (2, 8, 8, 3)


# Chains.


@linen(IMAGES)
def strides_and_pools(self, x):
    x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
    x = nn.max_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
    x = nn.avg_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2))
    return nn.Dense(5)(x.reshape(len(x), -1))


@linen(IMAGES)
def global_average_pooling(self, x):
    x = nn.relu(nn.Conv(8, (3, 3), padding="VALID")(x))
    x = nn.relu(nn.Conv(8, (1, 1), use_bias=False)(x))
    return nn.Dense(5)(x.mean(axis=(1, 2)))


@linen(IMAGES)
def max_over_channels(self, x):
    x = nn.relu(nn.Conv(8, (3, 3))(x)).max(axis=-1)
    return nn.Dense(5)(x.reshape(len(x), -1))


@linen(IMAGES)
def groups_and_depthwise(self, x):
    x = nn.relu(nn.Conv(8, (3, 3), name="entry")(x))
    x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8, name="depthwise")(x))
    x = nn.relu(nn.Conv(12, (3, 3), feature_group_count=4, name="grouped")(x))
    return nn.Dense(5, name="classifier")(x.mean(axis=(1, 2)))


@linen(IMAGES)
def dilations(self, x):
    x = nn.relu(nn.Conv(8, (3, 3), kernel_dilation=2)(x))
    x = nn.relu(nn.Conv(6, (3, 3), input_dilation=2, padding=((2, 2), (2, 2)))(x))
    return nn.Dense(5)(x.mean(axis=(1, 2)))


@linen(IMAGES)
def circular_padding(self, x):
    x = nn.relu(nn.Conv(8, (3, 3), padding="CIRCULAR")(x))
    x = nn.relu(nn.Conv(8, (3, 3), padding="REFLECT")(x))
    return nn.Dense(5)(x.mean(axis=(1, 2)))


@linen(IMAGES)
def unshared_convolution(self, x):
    x = nn.relu(nn.ConvLocal(4, (3, 3), strides=(2, 2))(x))
    return nn.Dense(5)(x.reshape(len(x), -1))


@linen((2, 12, 4))
def convolution_in_time(self, x):
    x = nn.relu(nn.Conv(8, (3,), padding="CAUSAL")(x))
    x = nn.relu(nn.Conv(8, (3,), padding="CAUSAL", kernel_dilation=2)(x))
    return nn.Dense(5)(x[:, -1])


@linen(IMAGES)
def transposed_convolutions(self, x):
    x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
    x = nn.relu(nn.ConvTranspose(6, (3, 3), strides=(2, 2))(x))
    return nn.ConvTranspose(3, (3, 3), transpose_kernel=True)(x)


@linen(IMAGES, refused={"Conv_0/kernel": "pad"})
def padded_with_ones(self, x):
    x = nn.relu(nn.Conv(8, (3, 3))(x))
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1.0)
    return nn.Dense(5)(x.reshape(len(x), -1))


class VGG(nn.Module):
    """VGG16, its widths divided by `divisor`."""

    divisor: int = 16
    classes: int = 5

    @nn.compact
    def __call__(self, x):
        for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(depth):
                x = nn.relu(nn.Conv(width // self.divisor, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(4096 // self.divisor)(x))
            x = nn.Dropout(0.5, deterministic=True)(x)
        return nn.Dense(self.classes)(x)


linen((2, 32, 32, 3))(VGG)


# Batch normalization in evaluation mode.


@linen(
    IMAGES,
    container="variables",
    layers=(
        layer("Conv_0", batch_norm("BatchNorm_0"), joint=True),
        layer("Conv_1", batch_norm("BatchNorm_1")),
        layer("Dense_0"),
    ),
)
def batch_norm_after_convolutions(self, x):
    x = nn.relu(BatchNorm()(nn.Conv(8, (3, 3))(x)))
    x = nn.relu(BatchNorm()(nn.Conv(8, (3, 3))(x)))
    return nn.Dense(5)(x.mean(axis=(1, 2)))


@linen(
    IMAGES,
    container="variables",
    layers=(
        layer("Conv_0", batch_norm("BatchNorm_0", epsilon=1e-3), use_bias=False, joint=True),
        layer("Conv_1", batch_norm("BatchNorm_1", epsilon=0.1), use_bias=False),
        layer("Dense_0"),
    ),
)
def batch_norm_with_other_epsilons(self, x):
    x = nn.relu(BatchNorm(epsilon=1e-3)(nn.Conv(8, (3, 3), use_bias=False)(x)))
    x = nn.relu(BatchNorm(epsilon=0.1)(nn.Conv(8, (3, 3), use_bias=False)(x)))
    return nn.Dense(5)(x.mean(axis=(1, 2)))


@linen(
    IMAGES,
    container="variables",
    layers=(
        layer("Conv_0", batch_norm("BatchNorm_0", scale=False), joint=True),
        layer("Conv_1", batch_norm("BatchNorm_1", scale=False, bias=False)),
        layer("Dense_0"),
    ),
)
def batch_norm_without_scale(self, x):
    x = nn.relu(BatchNorm(use_scale=False)(nn.Conv(8, (3, 3))(x)))
    x = nn.relu(BatchNorm(use_scale=False, use_bias=False)(nn.Conv(8, (3, 3))(x)))
    return nn.Dense(5)(x.mean(axis=(1, 2)))


def scales(name):
    """The scales of a batch normalization as a layer of its own."""
    norm = batch_norm(name)
    return Layer(norm.scale, batch_norm=norm._replace(scale=None))


@linen(
    IMAGES,
    container="variables",
    layers=(
        layer("Conv_0", joint=True),
        scales("BatchNorm_0"),
        layer("Conv_1"),
        scales("BatchNorm_1"),
        layer("Dense_0"),
    ),
)
def batch_norm_after_relu(self, x):
    x = BatchNorm()(nn.relu(nn.Conv(8, (3, 3))(x)))
    x = BatchNorm()(nn.relu(nn.Conv(8, (3, 3))(x)))
    return nn.Dense(5)(x.mean(axis=(1, 2)))


@linen(IMAGES, container="variables", training=True, refused={"params/Conv_0/kernel": "add"})
def batch_norm_of_the_batch(self, x):
    x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Conv(8, (3, 3))(x)))
    return nn.Dense(5)(x.mean(axis=(1, 2)))


@linen(IMAGES, refused={"Conv_0/kernel": "add"})
def group_norm(self, x):
    x = nn.relu(nn.GroupNorm(num_groups=2)(nn.Conv(8, (3, 3))(x)))
    return nn.Dense(5)(x.mean(axis=(1, 2)))


@linen(IMAGES, refused={"Conv_0/kernel": "add"})
def instance_norm(self, x):
    x = nn.relu(nn.InstanceNorm()(nn.Conv(8, (3, 3))(x)))
    return nn.Dense(5)(x.mean(axis=(1, 2)))


# Skips and branches.


class BasicBlock(nn.Module):
    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), use_bias=False)
        y = nn.relu(BatchNorm()(conv(self.width, strides=self.stride)(x)))
        y = BatchNorm()(conv(self.width)(y))
        if x.shape != y.shape:
            x = nn.Conv(self.width, (1, 1), self.stride, use_bias=False, name="conv_proj")(x)
            x = BatchNorm(name="norm_proj")(x)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        y = nn.relu(BatchNorm()(nn.Conv(self.width, (1, 1), use_bias=False)(x)))
        y = nn.Conv(self.width, (3, 3), self.stride, use_bias=False)(y)
        y = nn.relu(BatchNorm()(y))
        y = BatchNorm()(nn.Conv(4 * self.width, (1, 1), use_bias=False)(y))
        if x.shape != y.shape:
            x = nn.Conv(4 * self.width, (1, 1), self.stride, use_bias=False, name="conv_proj")(x)
            x = BatchNorm(name="norm_proj")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    block: type[nn.Module] = BasicBlock
    depths: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    classes: int = 1000

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (7, 7), 2, use_bias=False, name="conv_init")(x)
        x = nn.relu(BatchNorm(name="bn_init")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                stride = 2 if stage and not i else 1
                x = self.block(self.width * 2**stage, stride)(x)
        return nn.Dense(self.classes)(x.mean(axis=(1, 2)))


RESNET = (
    layer("conv_init", batch_norm("bn_init"), use_bias=False, joint=True),
    layer("Dense_0"),
)


def blocks(name, last, number, projected):
    """The last scale of each block is tied to the others in it by the sum."""
    lasts = {i: "norm_proj" if i in projected else last for i in range(number)}
    return {f"params/{name}_{i}/{norm}/scale": "add" for i, norm in lasts.items()}


@linen(
    (2, 32, 32, 3),
    container="variables",
    refused=blocks("BasicBlock", "BatchNorm_1", 8, (2, 4, 6)),
    layers=RESNET,
)
class ResNet18(ResNet):
    width: int = 4
    classes: int = 5


@linen(
    (2, 32, 32, 3),
    container="variables",
    refused=blocks("Bottleneck", "BatchNorm_2", 16, (0, 3, 7, 13)),
    layers=RESNET,
)
class ResNet50(ResNet):
    block: type[nn.Module] = Bottleneck
    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 4
    classes: int = 5


@linen(
    IMAGES,
    container="variables",
    refused={"params/Conv_2/kernel": "add", "params/Conv_4/kernel": "add"},
    layers=(layer("Conv_0", use_bias=False), scales("BatchNorm_4"), layer("Dense_0")),
)
def preactivation_ResNet(self, x):
    x = nn.Conv(8, (3, 3), use_bias=False)(x)
    for _ in range(2):
        y = nn.Conv(8, (3, 3), use_bias=False)(nn.relu(BatchNorm()(x)))
        x = x + nn.Conv(8, (3, 3), use_bias=False)(nn.relu(BatchNorm()(y)))
    x = nn.relu(BatchNorm()(x))
    return nn.Dense(5)(x.mean(axis=(1, 2)))


@linen(IMAGES, refused={"Conv_1/kernel": "add", "Conv_3/kernel": "add"})
def residual_blocks_of_equal_widths(self, x):
    x = nn.relu(nn.Conv(8, (3, 3))(x))
    for _ in range(2):
        x = nn.relu(x + nn.Conv(8, (3, 3))(nn.relu(nn.Conv(8, (3, 3))(x))))
    return nn.Dense(5)(x.mean(axis=(1, 2)))


@linen(IMAGES, refused={"Conv_1/kernel": "concatenate", "Conv_2/kernel": "concatenate"})
def concatenations_as_in_DenseNet(self, x):
    x = nn.relu(nn.Conv(4, (3, 3))(x))
    for _ in range(2):
        x = jnp.concatenate([x, nn.relu(nn.Conv(4, (3, 3))(x))], axis=-1)
    return nn.Dense(5)(x.mean(axis=(1, 2)))


@linen(
    IMAGES,
    container="variables",
    refused={"params/Conv_2/kernel": "concatenate", "params/Conv_4/kernel": "concatenate"},
    layers=(layer("Conv_0", use_bias=False), scales("BatchNorm_4"), layer("Dense_0")),
)
def DenseNet(self, x):
    x = nn.Conv(4, (3, 3), use_bias=False)(x)
    for _ in range(2):
        y = nn.Conv(8, (1, 1), use_bias=False)(nn.relu(BatchNorm()(x)))
        y = nn.Conv(4, (3, 3), use_bias=False)(nn.relu(BatchNorm()(y)))
        x = jnp.concatenate([x, y], axis=-1)
    x = nn.relu(BatchNorm()(x))
    return nn.Dense(5)(x.mean(axis=(1, 2)))


@linen(IMAGES, refused={"wide/kernel": "concatenate", "pooled/kernel": "concatenate"})
def branches_as_in_Inception(self, x):
    x = nn.relu(nn.Conv(8, (3, 3), name="stem")(x))
    narrow = nn.relu(nn.Conv(4, (1, 1), name="narrow")(x))
    wide = nn.relu(nn.Conv(4, (3, 3), name="reduce")(x))
    wide = nn.relu(nn.Conv(4, (3, 3), name="wide")(wide))
    pooled = nn.max_pool(x, (3, 3), padding="SAME")
    pooled = nn.relu(nn.Conv(4, (1, 1), name="pooled")(pooled))
    x = jnp.concatenate([narrow, wide, pooled], axis=-1)
    return nn.Dense(5, name="head")(x.mean(axis=(1, 2)))


@linen(IMAGES)
def two_towers(self, x):
    left = nn.relu(nn.Conv(8, (3, 3), name="left")(x)).mean(axis=(1, 2))
    right = nn.relu(nn.Conv(8, (3, 3), name="right")(x)).max(axis=(1, 2))
    return nn.Dense(5, name="head")(left * right)


@linen(IMAGES, refused={"Dense_1/kernel": "logistic"})
def squeeze_and_excitation(self, x):
    x = nn.relu(nn.Conv(8, (3, 3))(x))
    gate = nn.relu(nn.Dense(4)(x.mean(axis=(1, 2))))
    gate = nn.sigmoid(nn.Dense(8)(gate))
    x = nn.relu(nn.Conv(8, (3, 3))(x * gate[:, None, None]))
    return nn.Dense(5)(x.mean(axis=(1, 2)))


@linen(IMAGES, refused={"ConvTranspose_0/kernel": "concatenate"})
def unet(self, x):
    fine = nn.relu(nn.Conv(4, (3, 3))(x))
    coarse = nn.max_pool(fine, (2, 2), (2, 2))
    coarse = nn.relu(nn.Conv(8, (3, 3))(coarse))
    up = nn.ConvTranspose(4, (2, 2), strides=(2, 2))(coarse)
    x = jnp.concatenate([fine, up], axis=-1)
    return nn.Conv(2, (1, 1))(x)
