"""The benchmarks: contenders that compute the same, timing in turns, the command."""

import functools
import inspect
import json
import math
import pkgutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import (
    accelerator,
    accelerator_cases,
    bounds,
    flax_contender,
    normjax_contenders,
    run,
    second_phase,
)
from benchmarks.benches import BENCHES, has_torch, summarize, train_cases
from benchmarks.process import run_python, seconds_of
from benchmarks.synthetic import make_data
from benchmarks.timing import Case, Row, choose_num_rounds, measure
from normjax.networks.classifier import make_classifier
from normjax.networks.models import make_model
from normjax.training.step import Batch, TrainState, make_train_step
from tests.helpers import reference

pytestmark = pytest.mark.slow

TX = optax.sgd(0.01, momentum=0.9)
SIZES = {"convnet3": 12, "convnet5": 16}  # pixels
both_nets = pytest.mark.parametrize("name", ["convnet3", "convnet5"])


def import_torch_nets():
    """PyTorch is an extra that the library does without."""
    pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[bench]'")
    from benchmarks import torch_nets

    return torch_nets


@functools.cache
def data(name):
    return make_data(8, (SIZES[name], SIZES[name], 3))


def random_variables(model, images, seed):
    """Variables that are far from one another for different seeds, and fast to make."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[0].key == "batch_stats":
            return np.full(leaf.shape, path[-1].key == "var", np.float32)
        noise = rng.normal(0, 0.1 + 0.05 * seed, leaf.shape).astype(np.float32)
        return noise + np.float32(path[-1].key == "scale")

    shapes = jax.eval_shape(model.init, jax.random.key(0), images.astype(np.float32))
    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def trained_by_normjax(name):
    """Variables of two networks, and their losses [2, 3] at the first three steps."""
    images, labels = data(name)
    model = make_model(name, batch_norm=name == "convnet5")
    batch = Batch(images, labels, np.ones(len(labels), np.float32))
    step = jax.jit(make_train_step(make_classifier(model, images.shape[1:], 10), TX))
    start = [random_variables(model, images, seed) for seed in range(2)]
    losses = []
    for variables in start:
        state = TrainState(variables, TX.init(variables["params"]))
        for _ in range(3):
            state, metrics = step(state, batch, jax.random.key(0))
            losses.append(float(metrics.loss))
    losses = np.reshape(losses, (2, 3))
    assert np.abs(np.diff(losses)).min() > 0.01  # else equal losses would not mean equal steps
    assert np.abs(losses[0] - losses[1]).min() > 0.01
    return start, losses


# --- contenders compute what normjax computes


@both_nets
def test_plain_flax_trains_as_normjax(name):
    start, expected = trained_by_normjax(name)
    step = jax.jit(
        jax.vmap(flax_contender.make_step(flax_contender.NETS[name](), TX), (0, 0, None, None))
    )
    variables = jax.tree.map(lambda *leaves: jnp.stack(leaves), *start)
    opt_state = jax.vmap(TX.init)(variables["params"])
    losses = []
    for _ in range(3):
        variables, opt_state, loss = step(variables, opt_state, *data(name))
        losses.append(loss)
    np.testing.assert_allclose(np.stack(losses, 1), expected, rtol=1e-4)


def to_torch(name, params):
    """The PyTorch net with normjax's parameters."""
    import torch

    net = import_torch_nets().NETS[name](SIZES[name])
    convs = [layer for path, layer in sorted(params.items()) if path.startswith("Conv_")]
    kernels = [layer["kernel"].transpose(3, 2, 0, 1) for layer in convs]
    if name == "convnet3":
        side = SIZES[name] - 8
        dense = params["Dense_0"]["kernel"].reshape(side, side, 24, 10)
        pairs = [
            (net.conv1.weight, kernels[0]),
            (net.conv1.bias, convs[0]["bias"]),
            (net.conv2.weight, kernels[1]),
            (net.dense.weight, dense.transpose(3, 2, 0, 1).reshape(10, -1)),
        ]
    else:
        pairs = [(c.weight, k) for c, k in zip([*net.convs, net.last], kernels, strict=True)]
        for i, norm in enumerate(net.norms):
            own = params[f"BatchNorm_{i}"]
            pairs += [(norm.weight, own["scale"]), (norm.bias, own["bias"])]
    assert len(pairs) == len(list(net.parameters()))
    with torch.no_grad():
        for target, value in pairs:
            target.copy_(torch.from_numpy(value.copy()))
    return net


@both_nets
@pytest.mark.parametrize("way", ["eager", "channels_last", "vmap"])
def test_pytorch_trains_as_normjax(name, way):
    nets = import_torch_nets()
    import torch

    start, expected = trained_by_normjax(name)
    models = [to_torch(name, variables["params"]) for variables in start]
    images, labels = (torch.from_numpy(x) for x in data(name))
    images, labels = images.permute(0, 3, 1, 2), labels.long()  # the view is channels_last
    if way == "channels_last":
        models = [model.to(memory_format=torch.channels_last) for model in models]
    else:
        images = images.contiguous()
    if way == "vmap":
        step = nets.make_vmap_step(models, images, labels)
    else:
        steps = [nets.make_step(model, images, labels) for model in models]
        step = lambda index: torch.stack([step(index) for step in steps])  # noqa: E731
    losses = torch.stack([step(torch.randperm(8)) for _ in range(3)], 1)  # any order is the same
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-4)


def test_pytorch_normalizes_as_numpy():
    nets = import_torch_nets()
    model = nets.ConvNet3(12)
    weights = [p.detach().double().numpy() for p in model.conv1.parameters()]
    first = math.sqrt(sum((w**2).sum() for w in weights))
    others = [p.detach().double().numpy() for p in (model.conv2.weight, model.dense.weight)]
    expected = [w / first for w in weights] + [w / np.linalg.norm(w) for w in others]
    for actual, value in zip(nets.normalize_net(model), expected, strict=True):
        np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-8)


def test_normjax_is_trained_and_evaluated_to_the_end():
    prepared = normjax_contenders.prepare_train("linear", 1, 16, 40)
    losses = [prepared.call() for _ in range(4)]
    assert prepared.work == 3 and prepared.compile_s > 0  # 16 + 16 + 8 examples
    assert losses[0].shape == (1,) and losses[-1][0] < 0.9 * losses[0][0]

    evaluation = normjax_contenders.prepare_evaluate("linear", 2, 20)
    loss, error = normjax_contenders.prepare_plain_pass("linear", 2, 20).call()
    sums = evaluation.call()
    assert evaluation.work == 2 and sums.product_norms.shape == (2, 8)
    np.testing.assert_allclose(loss.sum(1), sums.loss.sum(1), rtol=1e-5)
    np.testing.assert_array_equal(error.sum(1), sums.error.sum(1))
    assert 20 < loss.sum(1).min() < 200  # 20 images at about ln 10


def test_the_second_phase_is_timed_with_its_training(invoke, tmp_path, capsys):
    arguments = ("--model=linear", "--epochs=2", "--num_seeds=2", "--target_losses=0.1")
    arguments += ("--train_size=50", "--batch_size=10", f"--workdir={tmp_path}")
    invoke(*arguments, main=second_phase.main)
    seconds = json.loads(capsys.readouterr().out)
    whole, training = seconds["whole epoch"], seconds["training alone"]
    assert len(whole) == len(training) == second_phase.ROUNDS
    assert all(0 < part < all_ for part, all_ in zip(training, whole, strict=True))
    lines = (tmp_path / "0" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 2 and "train_loss" in json.loads(lines[-1])


@pytest.mark.parametrize("with_gpu", [False, True])
def test_every_case_names_a_function_that_takes_its_arguments(with_gpu):
    with_torch = has_torch()
    cases = train_cases("convnet3", 4, 128, with_torch, with_gpu)
    torch = [case for case in cases if case.contender.startswith("PyTorch")]
    assert len(cases) == 2 + len(torch) and len(torch) == with_torch * (3 + 2 * with_gpu)
    for case in cases:
        inspect.signature(pkgutil.resolve_name(case.prepare)).bind(*case.args)
        assert (case.members, case.batch) == (4, 128)


def test_the_monitor_is_that_of_the_networks_normalized():
    """The logits over the product of norms, by numpy in float64."""
    prepared = normjax_contenders.prepare_monitor(6, 2)
    params = jax.tree.map(np.float64, normjax_contenders.draw_convnet3(()))
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(6, 10)), rng.integers(10, size=6)
    rho = math.prod(
        math.sqrt(sum(np.sum(leaf**2) for leaf in layer.values())) for layer in params.values()
    )
    seen = prepared.call()
    assert float(seen.product_norm) == pytest.approx(rho, rel=1e-5)
    loss = reference.cross_entropy(logits / rho, labels).mean()
    assert float(seen.normalized_loss) == pytest.approx(loss, rel=1e-6)
    assert prepared.work == 1


# --- timing


def test_cases_take_turns_and_a_failed_one_is_left_out(tmp_path, capfd):
    def case(name, members, batch, seconds, work):
        command = f"printf {name} >> {tmp_path}/turns; sleep {seconds}"
        call = functools.partial(subprocess.run, command, shell=True, check=True)
        return Case(name, members, batch, "benchmarks.timing:Prepared", (call, work, 1.5))

    lost = Case("lost", 1, None, "benchmarks.timing:no_such_function", ())
    cases = [case("a", 4, 128, 0.1, 5), lost, case("b", 1, None, 0.04, 1)]
    a, b = measure("bench", cases, "ms/thing", 1e3, pause=0)
    assert a._replace(value=0) == Row("bench", "a", 4, 128, 0, "ms/thing", 1.5)
    assert b._replace(value=0) == Row("bench", "b", 1, None, 0, "ms/thing", 1.5)
    assert 20 <= a.value < 200 and 40 <= b.value < 400  # the machine may be busy
    assert (tmp_path / "turns").read_text() == "ab" * 6  # a warm-up and five rounds
    assert "lost, 1 members, batch None: its process failed, no row" in capfd.readouterr().err


def test_slow_calls_get_fewer_rounds():
    assert [choose_num_rounds(seconds) for seconds in (0.1, 3, 60)] == [5, 3, 1]


def test_processes_are_measured_in_fresh_interpreters():
    # What comes before is not counted; the upper bound is for a busy machine.
    assert 0.1 <= seconds_of("time.sleep(0.1)", after="import time; time.sleep(2)") < 2
    measured = "from benchmarks.process import peak_megabytes as peak; print(peak({!r}))"
    small, large = (
        float(run_python("-c", measured.format(f"b = b'x' * {size}"))) for size in (1, 200_000_000)
    )
    assert 3 < small < 60 and abs(large - small - 200) < 5
    with pytest.raises(RuntimeError, match="exit code 3"):
        run_python("-c", "raise SystemExit(3)")


# --- the command


def test_the_parent_stays_small():
    loaded = run_python("-c", "import benchmarks.run, sys; print(*sys.modules)").split()
    assert "benchmarks.benches" in loaded and not {"jax", "torch", "numpy"} & set(loaded)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=train3,bogus"], f"no bench 'bogus'; allowed: {', '.join(BENCHES)}"),
        (["--only="], "no bench ''"),
        (["--out=."], "--out=. is a folder; a file is needed"),
        (["everything"], "unexpected argument 'everything'; options are --only and --out"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run.main(arguments)
    assert stop.value.code.startswith("error: ") and message in stop.value.code
    assert "\n" not in stop.value.code and not capsys.readouterr().out


def test_a_run_prints_a_table_and_writes_json(tmp_path, capsys):
    out = tmp_path / "new" / "rows.json"
    run.main(["--only=normalize", f"--out={out}"])
    rows = [Row(**row) for row in json.loads(out.read_text())]
    measured = [row for row in rows if row.unit == "us/network"]
    others = ["PyTorch loop"] * has_torch()
    expected = {1: ["normjax", "eager", "eager NumPy", *others], 64: ["normjax", *others]}
    assert [(row.contender, row.members) for row in measured] == [
        (contender, members) for members in expected for contender in expected[members]
    ]
    assert all(row.bench == "normalize" and 0.1 < row.value < 1e6 for row in measured)
    assert all((row.compile_s is None) == (row.contender in others) for row in measured)
    ratios = [row for row in rows if row.unit == "ratio"]
    assert len(ratios) == 4 * has_torch() and len(rows) == len(measured) + len(ratios)
    printed = capsys.readouterr().out.splitlines()
    assert all(run.format_row(row) in printed for row in rows)


def test_ratios_of_rows():
    def row(bench, contender, members, value, batch=128):
        return Row(bench, contender, members, batch, value, "ms", None)

    rows = [
        row("train3", "normjax", 4, 10.0),
        row("train3", "PyTorch eager NCHW", 4, 40.0),
        row("train3", "PyTorch vmap", 4, 20.0),
        row("train3", "Flax vmap", 4, 400.0),
        row("train3", "normjax", 64, 11.0),
        row("train3", "PyTorch vmap", 4, 5.0, batch=1024),
        row("memory", "normjax", 1, 300.0),
        row("epoch", "whole epoch", 2, 1.2),
        row("epoch", "training alone", 2, 1.0),
    ]
    found = {(r.bench, r.contender, r.members, r.batch): r.value for r in summarize(rows)}
    assert found == pytest.approx(
        {
            ("train3", "normjax / best PyTorch", 4, 128): 0.5,
            ("train3", "normjax / Flax vmap", 4, 128): 0.025,
            ("epoch", "whole epoch / training alone", 2, 128): 1.2,
            ("train3", "normjax, 64 / 4 members", 64, 128): 1.1,
        }
    )


def test_accelerator(tmp_path, capsys, monkeypatch):
    """At a tiny size on a CPU; the fastest strategy runs in float32 too."""
    monkeypatch.setattr(accelerator, "has_torch", lambda: False)
    small = ("--models=convnet3", "--members=2", "--batches=4", "--strategies=one_by_one")
    accelerator.main([*small, f"--out={tmp_path / 'table'}"])
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["precision"] for row in rows] == ["default", "highest"]
    assert all(row["ms"] > 0 and row["peak_gb"] > 0 for row in rows)
    table = (tmp_path / "table.md").read_text()
    assert "| convnet3 | 2 | 4 | one_by_one | default |" in table
    assert "convnet3, 2 networks, batch 4: one_by_one" in capsys.readouterr().out


def test_cases_of_accelerator(capsys, monkeypatch):
    """PyTorch's case, one that fails, and those without time: a name everywhere, then the next."""
    import_torch_nets()
    monkeypatch.setattr(accelerator_cases, "NUM_STEPS", 1)
    setting = {"model": "convnet3", "members": 1, "batch": 2}
    task = {"framework": "PyTorch", "settings": [setting], "names": ["eager", "cuda_graph"]}
    accelerator_cases.main({**task, "seconds": 60})
    accelerator_cases.main({**task, "settings": [setting, setting], "seconds": -1})
    eager, graph, *late = map(json.loads, capsys.readouterr().out.splitlines())
    assert eager["ms"] > 0 and graph["why_not"].startswith("failed: ")
    assert [row["why_not"] for row in late] == ["not run: time"] * 4
    assert [row["contender"] for row in late] == ["eager", "eager", "cuda_graph", "cuda_graph"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--models=resnet", "--models: no 'resnet'; allowed: convnet3, convnet5"),
        ("--strategies=fft", "--strategies: no 'fft'; allowed: one_by_one, "),
        ("--members=0", "--members=0: positive integers are needed"),
        ("extra", "unexpected argument 'extra'"),
    ],
)
def test_bad_options_of_accelerator(option, message):
    with pytest.raises(SystemExit, match=message):
        accelerator.main([option])


def test_bounds_are_those_counted_by_hand():
    """The 3-layer net as in `Ceilings` of the notes; an H100 reaches its peaks at most."""
    assert bounds.count_flops("convnet3") == 56_240_640
    assert bounds.count_bytes("convnet3") == 6 * 4 * 28**2 * 24 + 7 * 4 * 24**2 * 24
    for name, layers in bounds.LAYERS.items():
        model = make_model(name)
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
        sizes = [module["kernel"].size for _, module in sorted(params.items())]
        assert [kernel**2 * cin * cout for _, kernel, cin, cout in layers] == sizes
    bound = bounds.bound_ms("convnet3", 1024, "highest", "NVIDIA H100 80GB HBM3")
    assert bound == pytest.approx(1024 * 56_240_640 / 67e9)
    assert bounds.bound_ms("convnet3", 1024, "highest", "cpu") is None
