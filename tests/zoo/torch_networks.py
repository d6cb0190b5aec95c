"""PyTorch: state_dicts of modules, traced by `normjax.torch`."""

import functools

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import normjax.torch
from tests.zoo.network import BatchNorm, Layer, Network, random_inputs, random_leaves

NETWORKS = []


def network(shape, dtype=np.float32, **expected):
    """Register a subclass of Module, or a function that returns a module."""

    def add(build):
        name = build.__name__.replace("_", " ")
        make = functools.partial(make_torch, build, shape, dtype)
        NETWORKS.append(Network("PyTorch", name, "state_dict", make, trace=trace, **expected))
        return build

    return add


def trace(apply_fn, params, x):
    """Trace the module itself."""
    return normjax.torch.trace_structure(apply_fn.args[0], torch.from_numpy(np.array(x)))


def evaluate(module, params, x):
    """Load the arrays as the module's state_dict; return its output."""
    module.load_state_dict(normjax.torch.to_state_dict(params, module.state_dict()))
    with torch.no_grad():
        return module(torch.from_numpy(np.array(x))).numpy()


def make_torch(build, shape, dtype):
    """Return the function, random leaves, and inputs."""
    module = build().eval()
    arrays = normjax.torch.to_arrays(module.state_dict())
    params = jax.tree.map(np.asarray, random_leaves(arrays))
    return functools.partial(evaluate, module), params, random_inputs(shape, dtype)


def batch_norm(name):
    """The paths of a batch normalization."""
    return BatchNorm(
        *(f"{name}.{leaf}" for leaf in ("running_mean", "running_var", "weight", "bias"))
    )


@network((4, 12))
def MLP():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5))


@network((4, 12))
class order_of_definition(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(16, 5)
        self.first = nn.Linear(12, 16)

    def forward(self, x):
        return self.last(F.relu(self.first(x)))


@network((2, 3, 12, 12))
class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3)
        self.fc1, self.fc2 = nn.Linear(32, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.avg_pool2d(F.relu(self.conv2(x)), 2)
        x = F.dropout(F.relu(self.fc1(torch.flatten(x, 1))), training=self.training)
        return self.fc2(x)


@network((2, 3, 8, 8))
def depthwise_and_transposed():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(8, 4, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


@network(
    (2, 3, 8, 8),
    layers=(
        Layer("0.weight", "0.bias", batch_norm("1"), outputs=0, joint=True),
        Layer("4.weight", None, batch_norm("5"), outputs=0),
        Layer("9.weight", outputs=0),
    ),
)
def VGG_with_batch_norm():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y)


@network(
    (2, 3, 12, 12),
    layers=(
        Layer("conv1.weight", None, batch_norm("bn1"), outputs=0, joint=True),
        Layer("fc.weight", outputs=0),
    ),
    refused={"layer1.bn2.weight": "add", "layer2.downsample.1.weight": "add"},
)
class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.layer1, self.layer2 = BasicBlock(4, 4, 1), BasicBlock(4, 8, 2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean(dim=(2, 3)))


@network((2, 3, 8, 8), refused={"wide.weight": "cat"})
class concatenated_branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(torch.cat([self.narrow(x), self.wide(x)], dim=1))
        return self.head(x.amax(dim=(2, 3)))


@network((4, 6), np.int32)
class tied_embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.hidden = nn.Embedding(10, 8), nn.Linear(8, 8)
        self.decoder = nn.Linear(8, 10, bias=False)
        self.decoder.weight = self.embed.weight

    def forward(self, x):
        return self.decoder(F.relu(self.hidden(self.embed(x))))


@network((4, 12))
class square_and_scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)) ** 2) * 0.5


@network((4, 12), refused={"1.weight": "where"})
def prelu():
    return nn.Sequential(nn.Linear(12, 16), nn.PReLU(), nn.Linear(16, 5))


@network((4, 12), refused={"0.weight": "gelu"})
def gelu():
    return nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 5))


@network((4, 12), refused={"0.weight": "hardtanh"})
def relu6():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU6(), nn.Linear(16, 5))


@network((4, 12), refused={"0.weight": "native_layer_norm"})
def layer_norm():
    return nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 5))


@network((2, 3, 8, 8), refused={"0.weight": "native_group_norm"})
def group_norm():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


@network((2, 5, 8), refused={"attend.in_proj_weight": "softmax"})
class attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.attend(x, x, x, need_weights=False)[0].mean(dim=1))


@network((2, 5, 8), refused={"lstm.weight_ih_l0": "sigmoid", "lstm.weight_hh_l0": "addmm"})
class lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])
