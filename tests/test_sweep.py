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
    """A user's own network, with batch normalization."""

    @nn.compact
    def __call__(self, images, *, train=False):
        """A convolution and a dense layer."""
        x = nn.Conv(4, (3, 3), use_bias=False, name="stem")(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3, use_bias=False, name="head")(x.reshape(len(x), -1))


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
    run = normjax.run_sweep(config, model=Small(), dataset=own_data())
    assert (run.config.model, run.config.dataset) == ("Small", "own data")
    assert run.dataset.class_names == ("0", "1", "2")
    structure = run.classifier.structure
    assert structure.layers == ("params/stem", "params/head")
    flags = (tmp_path / "run" / "flags.txt").read_text()
    assert flags.startswith("# Given from Python, not by flags: model, dataset\n")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["given"] == ["model", "dataset"]
    for network, row in zip(networks_at(run, "final"), run.table.itertuples(), strict=True):
        logits = logits_of(run.apply_fn, network.variables, run.dataset.test.images)
        loss = np.mean(normjax.cross_entropy(logits, network.test_labels))
        assert loss == pytest.approx(row.test_loss, rel=1e-5)
        product = normjax.product_norm(network.variables, structure=structure)
        assert row.product_norm == pytest.approx(float(product), rel=1e-5)
        excess = normjax.excess_cross_entropy(logits / product, network.test_labels)
        assert row.normalized_test_excess == pytest.approx(float(np.mean(excess)), rel=1e-4)
        assert network.initial_variables.keys() == {"params", "batch_stats"}

    folder = tmp_path / "run"
    model, variables = normjax.load_member(folder, 0, model=Small)
    images = normjax.standardize_images(run.dataset.test.images[:4])
    np.testing.assert_array_equal(model.apply(variables, images), Small().apply(variables, images))
    with pytest.raises(ValueError, match="the run used your network Small: pass it again"):
        normjax.load_member(folder, 0)
    with pytest.raises(ValueError, match="the run's dataset is own data: pass it again"):
        load_run(folder, model=Small())
    with pytest.raises(ValueError, match="the run used your network Small: pass it again"):
        load_run(folder, dataset=own_data())
    with pytest.raises(ValueError, match="the data own data differ from those of the run"):
        load_run(folder, model=Small(), dataset=own_data(num_test=41))


def test_a_finished_run_is_not_resumed_with_another_network_or_data(tmp_path, capsys):
    config = normjax.SweepConfig(tmp_path / "run", **SMALL, resume=True)
    normjax.run_sweep(config, model=Layers(), dataset=own_data())
    capsys.readouterr()
    with pytest.raises(ValueError, match="the network's variables differ from the run's"):
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
        (
            Layers(jnp.tanh),
            "^model Layers: not all of its layers can .* held by 'tanh' in Layers",
        ),
        (Layers(num_classes=4), r"^model Layers: its logits have shape \(2, 4\) and dtype float32"),
    ],
)
def test_networks_that_cannot_be_normalized_are_refused_before_anything_is_made(
    tmp_path, model, message
):
    config = normjax.SweepConfig(tmp_path / "run", **SMALL)
    with pytest.raises(ValueError, match=message) as error:
        normjax.run_sweep(config, model=model, dataset=own_data())
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint64])
def test_labels_of_any_integer_type_are_counted(dtype):
    """The largest number of int8 and of uint8 too, plus one."""
    largest = min(np.iinfo(dtype).max, 300)
    images, labels = np.zeros((2, 4, 4, 1), np.uint8), np.array([0, largest], dtype)
    data = plan.as_dataset(((images, labels), (images, labels)))
    assert data.num_classes == largest + 1
    assert data.train.labels.tolist() == [0, largest] and data.train.labels.dtype == np.int32


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
