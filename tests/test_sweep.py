"""A sweep from Python: settings of the commands, own networks and data, finished runs."""

import dataclasses
import json
import os
import signal
import threading

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import normjax
from normjax.data import load_dataset
from normjax.plots import paper as plotting
from normjax.results import metrics
from normjax.training import plan
from normjax.training.finished_run import load_run, logits_of, networks_at

SMALL = {
    "train_size": 60,
    "test_size": 40,
    "model": "linear",
    "corruption_levels": [0, 1],
    "pretrain_epochs": 1,
    "epochs": 3,
    "batch_size": 30,
    "norms": ["2"],
}


class Small(nn.Module):
    """A user's own network, with batch normalization or without."""

    batch_norm: bool = False

    @nn.compact
    def __call__(self, images, *, train=False, mask=None):
        """A convolution and a dense layer."""
        x = nn.Conv(4, (3, 3), use_bias=not self.batch_norm)(images)
        if self.batch_norm:
            mask = None if mask is None else mask[:, None, None, None]
            x = nn.BatchNorm(use_running_average=not train)(x, mask=mask)
        x = nn.relu(x)
        return nn.Dense(3, use_bias=False)(x.reshape(len(x), -1))


class Layers(nn.Module):
    """Two dense layers with an activation between them."""

    activation: object = nn.relu
    num_classes: int = 3
    num_hidden: int = 5

    @nn.compact
    def __call__(self, images):
        """Flatten, dense, activation, dense."""
        x = self.activation(nn.Dense(self.num_hidden)(images.reshape(len(images), -1)))
        return nn.Dense(self.num_classes)(x)


@pytest.fixture(scope="module", autouse=True)
def undrawn():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plotting, "draw_figures", lambda *_: [])
        yield


def own_data(num_train=60, num_test=40):
    """Images of three classes, ((images, labels), (images, labels)): one third is bright."""
    rng = np.random.default_rng(0)

    def split(count):
        labels = np.arange(count) % 3
        images = rng.integers(0, 60, (count, 9, 6, 1))
        for i, label in enumerate(labels):
            images[i, 3 * label : 3 * label + 3] += 120
        return images.astype(np.uint8), labels

    return split(num_train), split(num_test)


def test_python_does_what_the_command_does(invoke, tmp_path):
    config = normjax.SweepConfig(workdir=tmp_path / "python", **SMALL)
    run = normjax.run_sweep(config)
    text = {k: ",".join(map(str, v)) if isinstance(v, list) else v for k, v in SMALL.items()}
    flags = [f"--{name}={value}" for name, value in text.items()]
    invoke(*flags, f"--workdir={tmp_path / 'command'}")
    for name in ("results.csv", "summary.json", "metrics.jsonl"):
        python, command = ((tmp_path / d / name).read_bytes() for d in ("python", "command"))
        assert python == command
    assert run.config == config and run.members[1].level == 1
    assert run.table["level"].tolist() == [0.0, 1.0]
    assert (tmp_path / "python" / "report.html").exists()
    # A finished run is refused, or only read.
    with pytest.raises(ValueError, match=r"already holds a run: give another folder, or --resume"):
        normjax.run_sweep(config)
    again = normjax.run_sweep(dataclasses.replace(config, resume=True))
    assert again.table.equals(run.table)
    with pytest.raises(ValueError, match=r"--resume: the run in .* is of experiment random_pre"):
        normjax.run_sweep(dataclasses.replace(config, resume=True), experiment="random_labels")


@pytest.mark.parametrize(
    ("values", "how", "message"),
    [
        ({"epochs": 0}, {}, "^--epochs=0: must be at least 1$"),
        ({"batch_size": 61}, {}, "must not exceed the 60 training images$"),
        ({"dataset": "nothing"}, {}, "^dataset 'nothing' is unknown"),
        ({}, {"experiment": "init_scale"}, "^--init_stds=: at least one"),
        ({}, {"experiment": "sweep"}, "^experiment 'sweep': allowed are random_pretrain"),
        ({}, {"dataset": 3}, "^dataset: a Dataset or "),
    ],
)
def test_bad_settings_raise_before_anything_is_made(tmp_path, values, how, message):
    config = normjax.SweepConfig(tmp_path / "run", **SMALL | values)
    with pytest.raises(ValueError, match=message):
        normjax.run_sweep(config, **how)
    assert not list(tmp_path.iterdir())


def test_own_network_and_data(tmp_path):
    """With batch normalization; the numbers in the table are those of the loaded networks."""
    config = normjax.SweepConfig(tmp_path / "run", **SMALL)
    run = normjax.run_sweep(config, model=Small(True), dataset=own_data())
    assert (run.config.model, run.config.dataset) == ("Small", "own data")
    assert run.config.batch_norm and run.dataset.class_names == ("0", "1", "2")
    flags = (tmp_path / "run" / "flags.txt").read_text()
    assert flags.startswith("# Given from Python, not by flags: model, dataset\n")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["given"] == ["model", "dataset"]
    for network, row in zip(networks_at(run, "final"), run.table.itertuples(), strict=True):
        logits = logits_of(run.apply_fn, network.params, run.dataset.test.images)
        loss = np.mean(normjax.cross_entropy(logits, network.test_labels))
        assert loss == pytest.approx(row.test_loss, rel=1e-5)
        product = normjax.product_norm(network.params)
        assert row.product_norm == pytest.approx(float(product), rel=1e-5)
        excess = normjax.excess_cross_entropy(logits / product, network.test_labels)
        assert row.normalized_test_excess == pytest.approx(float(np.mean(excess)), rel=1e-4)
        assert set(network.initial_params) == {"Conv_0", "Dense_0"}

    folder = tmp_path / "run"
    model, variables = normjax.load_member(folder, 0, model=Small(True))
    assert model == Small(False) and variables["params"].keys() == {"Conv_0", "Dense_0"}
    with pytest.raises(ValueError, match="the run used your network Small: pass it again"):
        normjax.load_member(folder, 0)
    with pytest.raises(ValueError, match="the run's dataset is own data: pass it again"):
        load_run(folder, model=Small(True))
    with pytest.raises(ValueError, match="the run used your network Small: pass it again"):
        load_run(folder, dataset=own_data())
    with pytest.raises(ValueError, match="the data own data differ from those of the run"):
        load_run(folder, model=Small(True), dataset=own_data(num_test=41))


def test_a_finished_run_is_not_resumed_with_another_network_or_data(tmp_path, capsys):
    config = normjax.SweepConfig(tmp_path / "run", **SMALL, resume=True)
    normjax.run_sweep(config, model=Layers(), dataset=own_data())
    capsys.readouterr()
    with pytest.raises(ValueError, match="the network's parameters differ from the run's"):
        normjax.run_sweep(config, model=Layers(num_hidden=6), dataset=own_data())
    with pytest.raises(ValueError, match="the data own data differ from those of the run"):
        normjax.run_sweep(config, model=Layers(), dataset=own_data(num_test=50))
    assert "this run is finished" not in capsys.readouterr().out
    normjax.run_sweep(config, model=Layers(), dataset=own_data())
    assert "this run is finished" in capsys.readouterr().out


def test_a_run_of_ours_takes_no_other_network_or_data(tmp_path):
    normjax.run_sweep(normjax.SweepConfig(tmp_path / "run", **SMALL))
    with pytest.raises(ValueError, match="the run's network is linear: do not pass another"):
        load_run(tmp_path / "run", model=Small())
    with pytest.raises(ValueError, match="the run's dataset is digits: do not pass another"):
        load_run(tmp_path / "run", dataset=load_dataset("digits"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("linear", "a Linen module is needed"),
        (nn.Dense(3), r"its logits have shape \(16, 9, 6, 3\), not \(16, 3\)"),
        (Layers(num_classes=4), r"its logits have shape \(16, 4\), not \(16, 3\)"),
        (Layers(jnp.tanh), "a layer is not homogeneous in its weights, or the names of the layers"),
        (Layers(lambda x: x[:, :, 3]), "it cannot be applied to the images: "),
        (nn.Sequential([nn.BatchNorm(True), jnp.ravel]), "needs a field batch_norm|cannot be"),
        (nn.Dense(3, dtype=jnp.float32, param_dtype=jnp.bfloat16), "must be float32"),
    ],
)
def test_networks_that_cannot_be_trained_are_refused(model, message):
    dataset = plan.as_dataset(own_data())
    with pytest.raises(ValueError, match=message) as error:
        plan.check_own_model(model, dataset, [])
    assert "\n" not in str(error.value)


def test_networks_that_can_be_trained_are_not_refused():
    dataset = plan.as_dataset(own_data())
    for model in (Small(), Small(True), Layers()):
        plan.check_own_model(model, dataset, [])
    with pytest.raises(ValueError, match="it needs a field init_std"):
        plan.check_own_model(Small(), dataset, [plan.Member(0, 0, "init_scale", 0.1, 0.1)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x / 255, y), r"train images must be uint8 \[N, H, W, C\]"),
        (lambda x, y: (x[..., 0], y), r"train images must be uint8 \[N, H, W, C\]"),
        (lambda x, y: (x[:0], y[:0]), r"train images must be uint8 \[N, H, W, C\]"),
        (lambda x, y: (x, y[1:]), "train labels must be integers"),
        (lambda x, y: (x, y / 1), "train labels must be integers"),
        (lambda x, y: (x, y - 1), "train labels must be from 0 to 2"),
        (lambda x, y: (x[:, 1:], y), "training and test images must have one shape"),
    ],
)
def test_data_that_cannot_be_used_are_refused(change, message):
    train, test = own_data()
    with pytest.raises(ValueError, match=message):
        plan.as_dataset((change(*train), test))


def test_an_interrupt_comes_after_the_checkpoint(tmp_path, monkeypatch):
    """From the main thread; the same call with resume=True goes on to the same bytes."""
    config = normjax.SweepConfig(tmp_path / "run", checkpoint_every=100, **SMALL)
    whole = normjax.run_sweep(dataclasses.replace(config, workdir=str(tmp_path / "whole")))
    append = metrics.append_metrics

    def append_and_signal(run_dir, members, common, values):
        append(run_dir, members, common, values)
        if common["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "append_metrics", append_and_signal)
        with pytest.raises(KeyboardInterrupt, match="run: stopped by SIGINT"):
            normjax.run_sweep(config)
    folder = tmp_path / "run" / "checkpoints" / "progress" / "000"
    assert "2" in {path.name for path in folder.iterdir()}
    resumed = normjax.run_sweep(dataclasses.replace(config, resume=True))
    assert resumed.table.equals(whole.table)


def test_a_thread_of_its_own(tmp_path):
    found = []
    config = normjax.SweepConfig(tmp_path / "run", **SMALL)
    thread = threading.Thread(target=lambda: found.append(normjax.run_sweep(config)))
    thread.start()
    thread.join()
    assert len(found[0].table) == 2
