"""One's own network from the command line, and the examples."""

import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest
from flax import nnx

import normjax
from experiments import bounds, default_init, init_scale, leaderboard
from normjax.training.finished_run import load_run, networks_at
from tests.helpers.commands import error_of, parse

ROOT = Path(__file__).parents[2]
SMALL = (
    "--train_size=60",
    "--test_size=40",
    "--batch_size=25",
    "--learning_rate=0.02",
    "--pretrain_epochs=0",
    "--epochs=2",
    "--norms=2",
)
HERE = f"--model={__name__}"


class Pooled(nn.Module):
    """A convolution, max pooling and a dense layer."""

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(4, (3, 3), name="stem")(images))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(10, use_bias=False, name="head")(x.reshape(len(x), -1))


class Residual(nnx.Module):
    """A sum of two layers' outputs between two layers, with batch normalization and dropout."""

    def __init__(self, *, rngs):
        self.stem = nnx.Linear(64, 8, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.inside = nnx.Linear(8, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.stem(images.reshape(len(images), -1))))
        return self.head(self.dropout(nnx.relu(x + self.inside(x))))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("lost.module:net", "--model=lost.module:net: module 'lost.module' cannot be imported: No"),
        (f"{__name__}:Lost", f"--model={__name__}:Lost: module '{__name__}' has no attribute"),
        (f"{__name__}:ROOT", "model PosixPath: a Linen module, or a function that makes"),
        (f"{__name__}:Residual", "model Residual: not all of its layers can be norm"),
    ],
)
def test_a_model_that_cannot_be_used_is_one_line(invoke, tmp_path, model, message):
    assert message in error_of(invoke, *SMALL, f"--model={model}", f"--workdir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def pooled_run(invoke, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("own") / "run"
    options = ("--num_seeds=3", f"{HERE}:Pooled", f"--workdir={run_dir}")
    invoke(*SMALL, *options, main=default_init.main)
    return run_dir


@pytest.mark.slow
def test_a_model_of_the_command_line_is_known_by_its_name(pooled_run, invoke, capsys):
    run = load_run(pooled_run)
    assert run.config.model == f"{__name__}:Pooled"
    assert run.classifier.structure.layers == ("params/stem", "params/head")
    assert json.loads((pooled_run / "run.json").read_text())["given"] == []
    model, variables = normjax.load_member(pooled_run, 0)
    images = normjax.standardize_images(run.dataset.test.images)
    losses = normjax.cross_entropy(model.apply(variables, images), run.dataset.test.labels)
    assert np.mean(losses) == pytest.approx(run.table["test_loss"][0], rel=1e-5)
    with pytest.raises(ValueError, match=r"the run's network is .*:Pooled: do not pass another"):
        load_run(pooled_run, model=Pooled)
    flags = f"--flagfile={pooled_run / 'flags.txt'}"
    invoke(flags, "--resume", main=default_init.main)
    assert "this run is finished; nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_the_leaderboard_takes_it_and_the_bounds_say_why_not(pooled_run, tmp_path):
    arguments = (f"--from={pooled_run}", f"--workdir={tmp_path}", "--sharpness_images=20")
    leaderboard.main(parse(leaderboard.Config, *arguments))
    assert (tmp_path / "leaderboard.csv").exists()
    config = parse(bounds.Config, f"--from={pooled_run}", f"--workdir={tmp_path}")
    assert "no bounds for networks with pooling" in error_of(bounds.main, config)


@pytest.mark.slow
def test_tied_layers_are_kept_and_initial_scales_are_those_of_kernels(invoke, tmp_path):
    options = ("--tied=keep", "--init_stds=0.05,0.2", f"--workdir={tmp_path}")
    invoke(*SMALL, *options, f"{HERE}:Residual", main=init_scale.main)
    run = load_run(tmp_path)
    assert run.classifier.structure.layers == ("params/stem", "params/head")
    for network, row in zip(networks_at(run, "final"), run.table.itertuples(), strict=True):
        how = {"structure": run.classifier.structure, "tied": "keep"}
        product = normjax.product_norm(network.variables, **how)
        assert row.product_norm == pytest.approx(float(product), rel=1e-6)
        start = network.initial_variables
        std = {0: 0.05, 1: 0.2, 2: 0.05}[network.member.index]
        kernels = [start["params"][name]["kernel"].ravel() for name in ("stem", "inside", "head")]
        assert np.std(np.concatenate(kernels)) == pytest.approx(std, rel=0.1)
        assert not np.array_equal(
            network.variables["batch_stats"]["norm"]["mean"], start["batch_stats"]["norm"]["mean"]
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("your_own_network", ["Certified: f(W; x) = rho_1 rho_2 rho_3 rho_4 rho_5 f(W~; x)"]),
        ("residual_network", ["Not certified:", 'With tied="keep", only these layers are norm']),
    ],
)
def test_examples_print_a_certificate_and_a_verdict(tmp_path, name, lines):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    for start in [*lines, "Verdict: "]:
        assert any(line.startswith(start) for line in printed), done.stdout
