"""PyTorch networks: every ATen operation in JAX, structures, and state_dicts in and out."""

import copy
import doctest
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import normjax
from normjax.tracing import aten as aten_in_jax

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402

import normjax.torch as normjax_torch  # noqa: E402


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def random_tensor(*shape):
    """Standard normal numbers."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def trace(module, *shape):
    """The structure of a network in evaluation mode, on inputs of this shape."""
    return normjax_torch.trace_structure(module.eval(), random_tensor(*shape))


def randomize(module):
    """Give biases, scales and statistics values as after training."""
    rng = np.random.default_rng(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            values = torch.from_numpy(rng.standard_normal(tensor.shape)).to(tensor.dtype)
            tensor.copy_(values.exp() if "var" in name else values * 0.5 + 0.1)
    return module.eval()


def power_of_two(leaves):
    """Stand for a norm: dividing by it changes no bit of a mantissa."""
    return jnp.full((), 4.0)


def assert_exact(module, *shape, norms=(2, power_of_two), **options):
    """PyTorch's own output at the normalized state_dict, times the product, is the same."""
    x = random_tensor(*shape)
    structure, state = trace(randomize(module), *shape), copy.deepcopy(module.state_dict())
    expected = module(x).detach()
    for norm in norms:
        normalized = normjax_torch.normalize_params(state, norm, structure=structure, **options)
        arrays = normjax_torch.to_arrays(state)
        product = float(normjax.product_norm(arrays, norm, structure=structure, **options))
        assert list(normalized) == list(state)
        module.load_state_dict(normalized)
        error = (product * module(x).detach() - expected).abs().max() / expected.abs().max()
        assert product != 1 and error <= (0 if norm is power_of_two else 2e-6)
    return structure


def dense(*between):
    """Two layers, and what is between them."""
    return nn.Sequential(nn.Linear(4, 6), *between, nn.Linear(6, 3))


class Tied(nn.Module):
    """Embeddings that are also the last layer, a layer that is applied twice, and a buffer."""

    def __init__(self):
        super().__init__()
        self.last, self.twice = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.first = nn.Linear(4, 4)
        self.first.weight = self.last.weight
        self.register_buffer("calls", torch.tensor(3))

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.last(F.relu(self.twice(F.relu(self.twice(x))))) / self.calls


class Residual(nn.Module):
    """`x + f(x)` between two layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.norm(self.conv(x)))  # the line of the sum
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Branches(nn.Module):
    """Layers in another order than their names', without a module for one of them."""

    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Bilinear(6, 4, 3), nn.Linear(4, 6)
        self.b = nn.Parameter(torch.ones(6, 6))

    def forward(self, x):
        y = F.linear(torch.relu(self.c(x)), self.b)
        y = torch.cat([y[:, 3:], y[:, :3]], 1).view(-1, 6)
        return self.a(F.leaky_relu(y), x)


CERTIFIED = {
    "no parameters": (dense(nn.BatchNorm1d(6, affine=False), nn.ReLU()), (5, 4), ["0", "3"]),
    "branches": (Branches(), (5, 4), ["c", "b", "a"]),
    "images": (
        nn.Sequential(
            nn.ConvTranspose2d(3, 6, 3, 2),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular", groups=2),
            nn.MaxPool2d(2),
            nn.Dropout(),
            nn.AdaptiveMaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
        (2, 3, 4, 4),
        ["0", "4", "9"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CERTIFIED)
def test_the_normalized_state_dict_is_the_same_function(name):
    module, shape, layers = CERTIFIED[name]
    structure = assert_exact(module, *shape)
    assert structure.is_certified and list(structure.layers) == layers, structure


@pytest.mark.slow
def test_what_is_not_tied_is_normalized_exactly():
    structure = assert_exact(Residual(), 2, 4, 5, 5, tied="keep")
    assert len(structure.problems) == 1


@pytest.mark.slow
def test_weight_norm_has_layers_without_a_layout():
    module = dense(parametrizations.weight_norm(nn.Linear(6, 6)), nn.ReLU())
    structure = assert_exact(module, 5, 4, norms=(2,))
    # The norm of a direction does not count.
    assert list(structure.degrees.values()) == [1, 1, 0, 1]


def test_degrees_and_shared_memory():
    module = Tied()
    structure = assert_exact(module, 5, 4, norms=(2,))
    assert structure.degrees == {"last": 2, "twice": 2}
    arrays = normjax_torch.to_arrays(module.state_dict())
    assert sorted(arrays) == ["calls", "first.bias", "last.weight", "twice.weight"]
    state = normjax_torch.normalize_params(module.state_dict(), structure=structure)
    assert state["first.weight"] is state["last.weight"]
    assert state["calls"] == 3 and type(state) is type(module.state_dict())
    assert state["calls"].data_ptr() != module.calls.data_ptr()


def test_a_residual_network_names_the_line_and_keeps_what_is_tied():
    structure = trace(Residual(), 2, 4, 5, 5)
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = 1 + next(i for i, line in enumerate(lines) if "the line of the sum" in line)
    assert len(structure.problems) == 1
    assert structure.problems[0].endswith(f"by 'add' in Residual (test_torch.py:{line})")
    assert structure.layers == ("stem", "head")
    with pytest.raises(ValueError, match=r"norm\.weight is tied to .* by 'add'"):
        normjax_torch.normalize_params(Residual().state_dict(), structure=structure)


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (nn.GELU(), "'gelu' in 1 (GELU)"),
        (nn.Tanh(), "'tanh' in 1 (Tanh)"),
        (nn.SiLU(), "'sigmoid' in 1 (SiLU)"),
        (nn.ReLU6(), "'hardtanh' in 1 (ReLU6)"),
        (nn.Hardtanh(), "'hardtanh' in 1 (Hardtanh)"),
        (nn.LayerNorm(6), "'native_layer_norm' in 1 (LayerNorm)"),
        (nn.GroupNorm(2, 6), "'native_group_norm' in 1 (GroupNorm)"),
        (nn.Softmax(1), "'softmax' in 1 (Softmax)"),
        (nn.Threshold(0.5, 0), "'le' in 1 (Threshold)"),
        (Function(lambda x: (10 * x).round()), "'round' in 1 (test_torch.py"),
        (Function(lambda x: torch.div(x, 2, rounding_mode="floor")), "'div' in 1 (test_torch.py"),
        (Function(lambda x: F.dropout(x)), "'native_dropout' in 1 (test_torch.py"),
        (Function(lambda x: x + torch.rand_like(x)), "'rand_like' in 1 (test_torch.py"),
        (Function(lambda x: x.norm(3, dim=1, keepdim=True) * x), "'linalg_vector_norm' in 1"),
        (
            Function(lambda x: torch.cond(x.sum() > 0, lambda x: 2 * x, lambda x: 1 - x, (x,))),
            "'cond' in 1 (test_torch.py",
        ),
    ],
)
def test_other_operations_hold_what_enters_them(between, reason):
    structure = trace(dense(between), 5, 4)
    assert structure.problems[0].startswith(f"0.weight is held by {reason}"), structure
    assert structure.layers[-1] == "2"


def test_a_result_of_another_shape_holds_its_operands(monkeypatch):
    monkeypatch.setitem(aten_in_jax.OPERATIONS, "relu", lambda x: x[:1])
    structure = trace(dense(nn.ReLU()), 5, 4)
    assert structure.problems == ("0.weight is held by 'relu' in 1 (ReLU)",)


def test_constants_do_not_scale_but_zeros_do():
    module = dense(Function(lambda x: x + torch.zeros(6)), nn.ReLU())
    assert trace(module, 5, 4).is_certified
    small = torch.tensor(1e-60, dtype=torch.float64)
    module = dense(Function(lambda x: x.double() + small), nn.ReLU(), Function(torch.Tensor.float))
    assert trace(module, 5, 4).problems[0].startswith("0.weight is held by 'add' in 1")


class Holder(nn.Module):
    """A layer, and what else a module may hold."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(4), persistent=kind != "hidden")
        if kind == "view":
            self.view = self.layer.weight.detach()
        if kind == "overlap":
            self.part = nn.Parameter(self.layer.weight.detach()[:2])
        if kind == "transposed":
            self.part = nn.Parameter(self.layer.weight.detach().t())

    def forward(self, x):
        y = self.layer(x)
        if self.kind == "counter":
            self.count += 1
        if self.kind == "hidden":
            return y + self.count
        if self.kind == "view":
            return y @ self.view
        if self.kind == "branch" and y.sum() > 0:
            return -y
        if self.kind == "item":
            return y * y.sum().item()
        if self.kind == "mask":
            return y[y[:, 0] > 0]
        return y


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("counter", r"changes its buffers \['count'\]"),
        ("view", "the memory of 'layer.weight' under another name, 'view'"),
        ("overlap", "'part' and 'layer.weight' overlap in memory"),
        ("transposed", "'part' and 'layer.weight' overlap in memory"),
        ("branch", "torch.export cannot trace the module: "),
        ("item", r"'local_scalar_dense' in Holder \(test_torch.py:[0-9]+\) depends on the values"),
        ("mask", r"'index' in Holder \(test_torch.py:[0-9]+\) depends on the values"),
    ],
)
def test_what_cannot_be_certified_is_refused_in_one_line(kind, message):
    with pytest.raises(ValueError, match=message) as caught:
        trace(Holder(kind), 2, 4)
    assert "\n" not in str(caught.value)


def test_buffers_outside_the_state_dict_are_constants():
    module = Holder("hidden").eval()
    assert trace(module, 2, 4).is_certified  # zeros
    module.count += 1
    assert trace(module, 2, 4).problems[0].startswith("layer.weight is held by 'add' in Holder")


def test_training_mode_and_wrong_arguments_are_refused():
    module = dense(nn.Dropout())
    with pytest.raises(ValueError, match=r"the module is in training mode.* call module.eval\(\)"):
        normjax_torch.trace_structure(module, random_tensor(5, 4))
    module.eval()[1].train()
    with pytest.raises(ValueError, match="submodule '1' is in training mode"):
        normjax_torch.trace_structure(module, random_tensor(5, 4))
    assert module[1].training and not module.training
    with pytest.raises(ValueError, match="x must be a tensor or a tuple of tensors, not ndarray"):
        normjax_torch.trace_structure(module, np.ones((5, 4)))
    with pytest.raises(ValueError, match=r"state_dict must be the result of module.state_dict"):
        normjax_torch.to_arrays(module)
    with pytest.raises(ValueError, match=r"arrays must have the leaves \['0.bias', '0.weight'"):
        normjax_torch.to_state_dict({}, module.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_are_kept(dtype):
    module = randomize(dense(nn.ReLU()).to(dtype))
    structure = normjax_torch.trace_structure(module, random_tensor(5, 4).to(dtype))
    state = module.state_dict()
    arrays = normjax_torch.to_arrays(state)
    back = normjax_torch.to_state_dict(arrays, state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    state = normjax_torch.normalize_params(state, structure=structure)
    assert {tensor.dtype for tensor in state.values()} == {dtype}
    tolerance = 20 * torch.finfo(dtype).eps
    assert abs(float(state["2.weight"].double().norm()) - 1) < tolerance


def test_shapes_are_enough_and_modules_stay_as_they_are():
    with torch.device("meta"):
        module, x = dense(nn.ReLU()).eval(), torch.empty(5, 4)
        hidden = Holder("hidden").eval()  # and its buffer has no values
    assert normjax_torch.trace_structure(module, x).layers == ("0", "2")
    assert not normjax_torch.trace_structure(hidden, x).is_certified
    module = nn.Sequential(nn.LSTM(4, 6), Function(lambda pair: pair[0])).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    expected = module(random_tensor(5, 4))
    assert not trace(module, 5, 4).is_certified
    assert torch.equal(module(random_tensor(5, 4)), expected)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_two_inputs():
    module = nn.Bilinear(4, 3, 5).eval()
    x = random_tensor(2, 4), random_tensor(2, 3)
    assert normjax_torch.trace_structure(module, x).is_certified


@pytest.mark.slow
def test_norms_use_the_layout_of_pytorch():
    module = nn.Sequential(nn.Conv2d(3, 4, (3, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).eval()
    arrays = normjax_torch.to_arrays(module.state_dict())
    structure = trace(module, 1, 3, 4, 2)
    twin = {
        "Conv_0": {"kernel": arrays["0.weight"].transpose(2, 3, 1, 0), "bias": arrays["0.bias"]},
        "Dense_0": {"kernel": arrays["3.weight"].T},
    }
    for norm in (1, 2, "spectral"):
        found = normjax.param_norms(arrays, norm, structure=structure)
        expected = normjax.param_norms(twin, norm, layers=["Conv_0", "Dense_0"])
        np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=1e-6)


def test_pytorch_is_loaded_when_it_is_used():
    code = "import sys, normjax; assert 'torch' not in sys.modules; sys.modules['torch'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}normjax.torch"], capture_output=True, text=True
    )
    assert done.stderr.strip().splitlines()[-1] == (
        "ModuleNotFoundError: normjax.torch needs PyTorch: pip install 'normjax[torch]'"
    )


def test_examples_run():
    report = doctest.testmod(normjax_torch, extraglobs={"torch": torch})
    assert report.attempted > 5 and not report.failed
