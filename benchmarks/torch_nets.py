"""The networks in PyTorch, and their training step: for one network, or for many by `vmap`."""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.synthetic import NUM_CLASSES

LEARNING_RATE, MOMENTUM = 0.01, 0.9


class ConvNet3(nn.Module):
    """The network convnet3; its dense layer has PyTorch's input order (C, H, W)."""

    def __init__(self, size: int = 32, channels: int = 3) -> None:
        """Build the layers for square images of `size` pixels, at least 12."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 24, 5)
        self.conv2 = nn.Conv2d(24, 24, 5, bias=False)
        self.dense = nn.Linear(24 * (size - 8) ** 2, NUM_CLASSES, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map float images [N, C, H, W] to logits [N, K]."""
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.dense(x.flatten(1))


class ConvNet5(nn.Module):
    """The network convnet5 with batch normalization."""

    def __init__(self, size: int = 32, channels: int = 3) -> None:
        """Build the layers for square images of `size` pixels, a multiple of 8."""
        super().__init__()
        widths, strides = (channels, 32, 64, 64, 128), (1, 2, 2, 2)
        # For an even size and stride 2, XLA's SAME pads only after the image.
        self.paddings = [(1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1) for stride in strides]
        self.convs = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 3, strides[i], bias=False) for i in range(4)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.last = nn.Conv2d(128, NUM_CLASSES, size // 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map float images [N, C, H, W] to logits [N, K]."""
        for padding, conv, norm in zip(self.paddings, self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(F.pad(x, padding))))
        return self.last(x).flatten(1)


NETS = {"convnet3": ConvNet3, "convnet5": ConvNet5}


def standardize(images: torch.Tensor) -> torch.Tensor:
    """Scale pixels 0..255 to [-1, 1]."""
    return (images.float() / 255 - 0.5) / 0.5


def make_step(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Make `step(index) -> mean loss`: SGD with momentum on the indexed examples.

    Args:
      model: the model, updated in place.
      images: uint8 [N, C, H, W]; batches take its memory format.
      labels: int64 [N].
    """
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM)
    memory_format = _memory_format(images)

    def step(index):
        x = standardize(images[index]).contiguous(memory_format=memory_format)
        loss = F.cross_entropy(model(x), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def make_vmap_step(
    models: Sequence[nn.Module], images: torch.Tensor, labels: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Make `step(index) -> mean losses [M]` for all models at once, on the same examples.

    Args:
      models: the models; stacked copies are trained.
      images, labels: see `make_step`.
    """
    params, buffers = torch.func.stack_module_state(list(models))
    params = {name: value.detach() for name, value in params.items()}
    momentum = {name: torch.zeros_like(value) for name, value in params.items()}
    model = copy.deepcopy(models[0]).to("meta")

    def loss_fn(params, buffers, x, y):
        logits = torch.func.functional_call(model, (params, buffers), (x,))
        return F.cross_entropy(logits, y)

    grad_fn = torch.func.vmap(
        torch.func.grad_and_value(loss_fn), in_dims=(0, 0, None, None), randomness="error"
    )

    def step(index):
        grads, losses = grad_fn(params, buffers, standardize(images[index]), labels[index])
        for name, grad in grads.items():
            momentum[name].mul_(MOMENTUM).add_(grad)
            params[name].sub_(momentum[name], alpha=LEARNING_RATE)
        return losses

    return step


@torch.no_grad()
def normalize_net(model: ConvNet3) -> list[torch.Tensor]:
    """Return the parameters of the 3-layer net, divided by the layers' Frobenius norms (eq. 2)."""
    first = [model.conv1.weight, model.conv1.bias]
    norm = torch.linalg.vector_norm(torch.stack([p.norm() for p in first]))
    others = [model.conv2.weight, model.dense.weight]
    return [p / norm for p in first] + [p / p.norm() for p in others]


def _memory_format(images: torch.Tensor) -> torch.memory_format:
    is_nchw = images.is_contiguous()
    return torch.contiguous_format if is_nchw else torch.channels_last
