"""The experiments beside random pretraining, end to end on few digits."""

import json

import numpy as np
import pytest

from experiments import default_init, init_scale, random_labels
from normjax import load_member
from normjax.data import load_dataset
from normjax.results.table import on_own_labels, read_results
from normjax.training.ensemble import Member
from normjax.training.members import own_labels
from tests.helpers import reference

SMALL = (
    "--train_size=60",
    "--test_size=80",
    "--batch_size=20",
    "--learning_rate=0.05",
    "--pretrain_epochs=1",
    "--epochs=12",
    "--norms=2",
    "--checkpoint_every=100",
)


def metrics_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def scaled_run(invoke, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("init_scale")
    options = ("--init_stds=0.05,0.2", "--test_every=4", f"--workdir={run_dir}")
    invoke(*SMALL, *options, main=init_scale.main)
    return run_dir


def test_init_scale_has_its_networks_and_the_random_one(scaled_run):
    table = read_results(scaled_run)
    columns = ["member", "family", "level", "labels"]
    assert list(table[columns].itertuples(index=False, name=None)) == [
        (0, "init_scale", 0.05, "natural"),
        (1, "init_scale", 0.2, "natural"),
        (2, "random_labels", 1.0, "natural"),
        (2, "random_labels", 1.0, "random"),
    ]
    own = on_own_labels(table)
    assert own["member"].tolist() == [0, 1, 2] and own["labels"].iloc[2] == "random"
    found = json.loads((scaled_run / "summary.json").read_text())[0]
    assert found["num_networks"] == 3 and found["left_out"] == {}


def test_initial_scales_are_those_asked_for(invoke, tmp_path):
    """After one step with no learning rate to speak of, the weights are the initial ones."""
    options = ("--model=linear", "--init_stds=0.05,0.2", f"--workdir={tmp_path}")
    invoke(*SMALL, "--epochs=1", "--learning_rate=1e-12", *options, main=init_scale.main)
    for member, std in enumerate((0.05, 0.2, 0.05)):
        _, variables = load_member(tmp_path, member)
        for layer in variables["params"].values():
            for leaf in layer.values():
                # The standard error of a standard deviation of n normal numbers.
                assert abs(np.std(leaf) / std - 1) < 4 / np.sqrt(2 * leaf.size)


def test_random_labels_are_those_that_are_fitted_and_tested(scaled_run):
    """Losses of the random-label network on its own labels, by numpy in float64."""
    rows = [row for row in read_results(scaled_run).itertuples() if row.member == 2]
    dataset = load_dataset("digits", train_size=60, test_size=80)
    config = type("Config", (), {"seed": 0, "corruption": "swap"})
    member = Member(2, 0, "random_labels", 1.0, 0.05)
    _, variables = load_member(scaled_run, 2)
    for row in rows:
        for split in ("train", "test"):
            images, labels = getattr(dataset, split)[:2]
            if row.labels == "random":
                labels = own_labels(config, dataset, member, split)
            logits = reference.convnet3_logits(variables["params"], images)
            loss = reference.cross_entropy(logits, labels).mean()
            assert getattr(row, f"{split}_loss") == pytest.approx(loss, rel=1e-5)
            error = reference.error(logits, labels).mean()
            assert getattr(row, f"{split}_error") == pytest.approx(error, abs=1e-7)


def test_test_losses_are_measured_every_so_many_epochs(scaled_run):
    lines = metrics_of(scaled_run)
    assert {line["step"] for line in lines if "test_loss" in line} == {4, 8, 12}
    last = {line["member"]: line for line in lines if line["step"] == 12}
    assert len(last) == 3 and all(0 < line["test_error"] < 1 for line in last.values())


def test_default_init_repeats_one_setting(invoke, tmp_path):
    options = ("--model=linear", "--num_seeds=3", "--epochs=2", f"--workdir={tmp_path}")
    invoke(*SMALL, *options, main=default_init.main)
    table = read_results(tmp_path)
    columns = ["family", "level", "seed", "labels"]
    assert list(table[columns].itertuples(index=False, name=None)) == [
        ("default_init", 0.0, seed, "natural") for seed in range(3)
    ]
    assert table["train_loss"].nunique() == 3


def test_random_labels_adds_to_the_corruption_sweep(invoke, tmp_path):
    options = ("--model=linear", "--corruption_levels=0,1", "--epochs=2")
    invoke(*SMALL, *options, f"--workdir={tmp_path}", main=random_labels.main)
    table = on_own_labels(read_results(tmp_path))
    assert list(table[["family", "level", "labels"]].itertuples(index=False, name=None)) == [
        ("pretrain", 0.0, "natural"),
        ("pretrain", 1.0, "natural"),
        ("random_labels", 1.0, "random"),
    ]


def test_init_scale_needs_a_scale(invoke, tmp_path):
    with pytest.raises(SystemExit, match="--init_stds=: at least one"):
        invoke(*SMALL, "--init_stds=", f"--workdir={tmp_path}", main=init_scale.main)
    assert not list(tmp_path.iterdir())
