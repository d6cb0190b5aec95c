"""ATen operations in JAX give what PyTorch gives."""

import jax
import numpy as np
import pytest

from normjax.tracing.aten import OPERATIONS

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")

from torch.nn import functional as F  # noqa: E402

import normjax.torch as normjax_torch  # noqa: E402

pytestmark = pytest.mark.slow
aten = torch.ops.aten


def arithmetic(x):
    y, positive = x.flip(1), x.abs() + 1
    return [
        *(x + y, x + 2, torch.add(x, y, alpha=3), aten.add.Scalar(x, 2), x - y, 1 - x),
        *(aten.sub.Scalar(x, 2, 3), x * y, 2 * x, aten.mul.Scalar(x, 3), x / positive, x / 3),
        *(aten.div.Scalar(x, 3), -x, x.reciprocal(), positive.rsqrt(), positive.sqrt()),
        *(x**2, positive**0.5, positive**1.5, x**-1, torch.sign(x)),
        *(torch.maximum(x, y), torch.minimum(x, y), x.clamp(0), x.clamp(max=0.5), x.clamp(0, 1)),
        *(torch.clamp(x, min=y), F.relu(x), F.relu6(3 * x), F.hardtanh(x), F.leaky_relu(x)),
        *(F.leaky_relu(x, -0.3), F.threshold(x, 0, 0), F.prelu(x, torch.tensor([0.3]))),
        *(torch.where(x > y, x, 0), x.masked_fill(x < y, 0), x.double() * 2, (3 * x).long()),
        *(x == y, x == 1, x != y, x != 1, x < y, x < 1, x <= y, x <= 1, x > 1, x >= y, x >= 1),
        *(torch.ones_like(x), torch.full_like(x, 2), aten.fill.Scalar(x, 3.0)),
    ]


def reductions(x):
    return [
        *(x.sum(), x.sum(1), x.sum((0, 2), keepdim=True), x.mean(), x.mean(-1), x.mean((1, 2))),
        *(x.prod(), x.prod(1), x.amax(), x.amax((1, 2)), x.max(), x.max(1)[0]),
        *(x.max(1, keepdim=True).values, x.amin(1), x.min(), x.min(1)[0], x.cumsum(1)),
        *(x.sort(1)[0], x.sort(descending=True)[0], x.topk(2)[0], x.topk(2, 1, False)[0]),
        *(x.var(), x.var(1), x.var(1, correction=0, keepdim=True), x.std((1, 2))),
        *(x.norm(), x.norm(dim=1), x.norm(1, dim=1, keepdim=True), x.norm(torch.inf, dim=1)),
    ]


def shapes(x):
    filled = torch.zeros(2, 4, 6)
    filled[:, 1:3] = x[:, :2]
    filled[0] += x[1]
    filled[:, [0, 2]] = 1
    added = x.clone().index_add_(1, torch.tensor([1, 1]), x[:, :2])
    selected = aten.select_scatter(x, x[:, 0], 1, 2)
    stepped = aten.slice_scatter(x, x[:, :2], 1, 0, None, 2)
    return [
        *(x.view(8, -1), x.reshape(-1), x.flatten(1), x.permute(2, 0, 1), x.mT, x[None], x[:, 0]),
        *(x[..., -1], x[:, 1:3], x[:, ::2], x[:, -2:], x[:, [2, 0, 2]], x[torch.tensor([1]), 2]),
        *(x[:1].squeeze(0), x[:1].squeeze(), x[:, :1].squeeze((0, 1)), x.unsqueeze(-1)),
        *(x.expand(3, -1, -1, 6), x.repeat(2, 1, 1, 3), x.split([1, 3], 1)[1], x.chunk(2, 2)[0]),
        *(x.unfold(1, 2, 1), x.unfold(-1, 3, 2), x.roll(1, 1), x.flip(0, 2), x.unbind(1)[3]),
        *(torch.cat([x, torch.zeros(0), x]), torch.cat([x, x], 2), torch.stack([x, x], 1)),
        *(torch.tril(x), x.index_select(1, torch.tensor([2, 2])), F.pad(x, (1, 2)), x.clone()),
        *(F.pad(x, (-1, 2, 1, 0), value=3), F.pad(x, (1, 1), mode="reflect"), filled, added),
        *(F.pad(x, (2, 1), mode="circular"), F.pad(x, (2, 1), mode="replicate"), selected),
        *(x.gather(1, torch.tensor([[[0, 3]], [[1, 2]]])), stepped, x.detach(), x.contiguous()),
        *(F.pixel_shuffle(x[:, :, None], 2), torch.einsum("bij,bkj->bik", x, x)),
        *(aten.alias(x), aten.squeeze(x[:1]), aten.squeeze.dim(x[:1], 0), aten.copy(x, x[:1])),
    ]


def images(x):
    kernel, odd, bias = torch.ones(4, 2, 3, 3).cumsum(0), x[:, :, 1:, :6], torch.arange(4.0)
    transposed = torch.ones(4, 3, 3, 2).cumsum(2)
    scale, positive = torch.arange(4.0), torch.arange(4.0) + 1
    return [
        *(
            F.conv2d(x, torch.ones(5, 4, 3, 2).cumsum(0), torch.ones(5)),
            F.conv1d(x[:, :, 0], kernel[..., 0], groups=2),
        ),
        F.conv2d(x, kernel, bias, stride=2, padding=1, dilation=2, groups=2),
        F.conv2d(x, kernel, padding="same", groups=2),
        F.conv_transpose2d(x, transposed, stride=2, padding=1, output_padding=1),
        F.conv_transpose2d(x, transposed, torch.ones(6), (2, 1), 3, (1, 0), 2, 2),
        F.conv_transpose2d(x, transposed, groups=4),
        *(F.max_pool2d(x, 2), F.max_pool2d(odd, 3, 2, 1, ceil_mode=True), F.max_pool1d(x[0], 2)),
        *(F.max_pool2d(odd, 2, 3, ceil_mode=True), F.max_pool2d(x, (3, 2), 1, dilation=2)),
        *(F.avg_pool2d(x, 2), F.avg_pool2d(odd, 3, 2, 1, ceil_mode=True), F.avg_pool1d(x[0], 3)),
        F.avg_pool2d(odd, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        F.avg_pool2d(odd, 2, divisor_override=3),
        *(
            F.adaptive_avg_pool2d(x, (3, 5)),
            F.adaptive_avg_pool2d(x, 1),
            F.adaptive_avg_pool1d(x[0], 3),
        ),
        *(F.adaptive_max_pool2d(x, (3, 5)), F.adaptive_max_pool1d(x[0], 4)),
        *(F.max_pool3d(x, 2), F.avg_pool3d(x, 2), F.adaptive_avg_pool3d(x, 3)),
        F.adaptive_max_pool3d(x, 3),
        F.batch_norm(x, scale, positive, positive, scale),
        F.batch_norm(x[:, :, 0, 0], scale, positive),
        *(F.instance_norm(x), F.instance_norm(x, weight=scale, bias=positive)),
        *(F.layer_norm(x, (7,)), F.layer_norm(x, (8, 7), x[0, 0], x[1, 0])),
        *(F.group_norm(x, 2), F.group_norm(x, 2, scale, positive)),
        *(F.interpolate(x[0], scale_factor=2), F.interpolate(x, (11, 5))),
        *(F.interpolate(x[:, None], scale_factor=2), F.interpolate(x, scale_factor=1.7)),
        *(F.interpolate(x[0], scale_factor=2, mode="linear"), F.interpolate(x, 5, mode="bilinear")),
        F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
        F.interpolate(x[:, None], scale_factor=2, mode="trilinear"),
        *(F.unfold(x, 2), F.fold(F.unfold(x, 2), (8, 7), 2), F.local_response_norm(x, 2)),
    ]


def matrices(x):
    table, indices = torch.arange(12.0).view(4, 3), torch.tensor([[0, 3], [1, 1]])
    bilinear = torch.ones(6, 4, 3).cumsum(0)
    return [
        *(x @ x.T, x[None] @ x.T, torch.mv(x, x[0]), torch.dot(x[0], x[1]), F.linear(x, x)),
        *(F.linear(x, x, x[:, 0]), torch.addmm(x[:, 0], x, x.T, beta=2, alpha=3)),
        *(F.embedding(indices, table), F.embedding(indices, table) @ x[:3, :3]),
        *(F.bilinear(x[:, :4], x[:, 1:4], bilinear), torch.baddbmm(x[None], x[None], x.T[None])),
    ]


INPUTS = {
    arithmetic: (3, 4),
    reductions: (2, 4, 3),
    shapes: (2, 4, 6),
    images: (2, 4, 8, 7),
    matrices: (4, 4),
}


class Function(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def random_tensor(function):
    """Standard normal numbers for a function."""
    numbers = np.random.default_rng(0).standard_normal(INPUTS[function])
    return torch.from_numpy(numbers.astype(np.float32))


def exported(function):
    """Export a function of one tensor."""
    return normjax_torch._export(Function(function).eval(), (random_tensor(function),))


def test_every_operation_is_tested():
    nodes = [node for function in INPUTS for node in exported(function).graph.nodes]
    names = {str(node.target).removeprefix("aten.").removesuffix(".default") for node in nodes}
    assert names >= set(OPERATIONS)


@pytest.mark.parametrize("function", INPUTS)
def test_operations_are_those_of_pytorch(function):
    program, x = exported(function), random_tensor(function)
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.default_matmul_precision("highest"),
    ):
        outputs = jax.jit(lambda x: normjax_torch._apply(program, {}, {}, [x]))(x.numpy())
    for number, (output, expected) in enumerate(zip(outputs, function(x), strict=True)):
        assert output.dtype == normjax_torch._dtype(expected), number
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5, err_msg=str(number))
