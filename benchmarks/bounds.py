"""Lower bounds on the time of a training step, counted from the shapes of a network's layers."""

from typing import NamedTuple

CONVNET3 = ((28, 5, 3, 24), (24, 5, 24, 24), (1, 24, 24, 10))
CONVNET5 = (
    (32, 3, 3, 32),
    (16, 3, 32, 64),
    (8, 3, 64, 64),
    (4, 3, 64, 128),
    (1, 4, 128, 10),
)
LAYERS = {"convnet3": CONVNET3, "convnet5": CONVNET5}
"""The layers of each network: (output size, kernel size, channels in, channels out)."""


class Peak(NamedTuple):
    """The peak rates of a device, from its data sheet (dense, not sparse)."""

    tflops: dict[str, float]  # by matmul precision, of float32 inputs
    tb_per_s: float


PEAKS = {  # by a part of JAX's device kind
    "H200": Peak({"default": 495, "highest": 67}, 4.8),
    "H100": Peak({"default": 495, "highest": 67}, 3.35),
    "A100": Peak({"default": 156, "highest": 19.5}, 2.0),
    "TPU v5 lite": Peak({"default": 197, "highest": 197 / 6}, 0.82),  # six passes of bfloat16
}


def count_flops(model: str) -> int:
    """Return the operations of a step for an image: direct convolutions and their gradients.

    A multiply-add is two operations. The first layer has no gradient of its input.
    """
    return sum(
        (2 if number == 0 else 3) * 2 * out**2 * kernel**2 * cin * cout
        for number, (out, kernel, cin, cout) in enumerate(LAYERS[model])
    )


def count_bytes(model: str) -> int:
    """Return the bytes of activations that a step moves for an image, in float32.

    Each layer's output is written, and read by the next layer, its kernel gradient and the mask of
    ReLU. The gradient of the output is written, and read by the kernel gradient and, except in the
    first layer, the input gradient. The logits are not counted.
    """
    return sum(
        (6 if number == 0 else 7) * 4 * out**2 * cout
        for number, (out, _, _, cout) in enumerate(LAYERS[model][:-1])
    )


def bound_ms(model: str, batch_size: int, precision: str, device_kind: str) -> float | None:
    """Return the larger of both bounds for a network and step; None for an unknown device."""
    for name, peak in PEAKS.items():
        if name in device_kind:
            flops = batch_size * count_flops(model) / (peak.tflops[precision] * 1e12)
            memory = batch_size * count_bytes(model) / (peak.tb_per_s * 1e12)
            return 1e3 * max(flops, memory)
    return None
