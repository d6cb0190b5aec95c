"""Networks read back from a finished run, against what the run itself wrote."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import random_labels
from normjax import cross_entropy
from normjax.training import finished_run as trained
from normjax.training.members import own_labels
from normjax.training.plan import make_sweep

ARGUMENTS = (
    "--dataset=digits",
    "--train_size=60",
    "--test_size=45",
    "--model=convnet5",
    "--batch_norm",
    "--corruption_levels=0.5",
    "--pretrain_epochs=1",
    "--epochs=2",
    "--batch_size=32",
    "--norms=2",
)


@pytest.fixture(scope="module")
def run_dir(invoke, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    invoke(*ARGUMENTS, f"--workdir={run_dir}", main=random_labels.main)
    return run_dir


def test_networks_have_the_losses_of_the_results(run_dir):
    run = trained.load_run(run_dir)
    networks = list(trained.networks_at(run, "final"))
    assert [n.member.family for n in networks] == ["pretrain", "random_labels"]
    for network, row in zip(networks, run.table.itertuples(), strict=True):
        for split in ("train", "test"):
            labels = getattr(network, f"{split}_labels")
            images = getattr(run.dataset, split).images
            logits = trained.logits_of(run.apply_fn, network.variables, images)
            loss = np.mean(np.asarray(cross_entropy(logits, labels), np.float64))
            assert loss == pytest.approx(getattr(row, f"{split}_loss"), rel=2e-6)
            assert np.mean(logits.argmax(-1) != labels) == getattr(row, f"{split}_error")
        expected = own_labels(run.config, run.dataset, network.member, "train")
        np.testing.assert_array_equal(network.train_labels, expected)
    assert (networks[0].train_labels == run.dataset.train.labels).all()
    assert (networks[1].train_labels != run.dataset.train.labels).any()


def test_initial_parameters_are_those_that_training_started_from(run_dir):
    run = trained.load_run(run_dir)
    member = run.members[1]
    config = dataclasses.replace(run.config, pretrain_epochs=0)
    sweep = make_sweep("random_labels", config, run.dataset, [member])
    keys = jax.numpy.stack([member.key(run.config.seed)] * len(jax.local_devices()))
    state = sweep.ensemble.init(keys, None)
    found = trained.initial_variables(run, member)
    assert found.keys() == {"params", "batch_stats"}
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(state.variables), strict=True):
        np.testing.assert_allclose(ours, theirs[0], rtol=1e-6, atol=1e-8)


def test_what_can_not_be_loaded_is_named(run_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run here \(run.json is missing\)"):
        trained.load_run(tmp_path)
    run = json.loads((run_dir / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**run, "finished": False}))
    with pytest.raises(ValueError, match="not finished; --resume continues it"):
        trained.load_run(tmp_path)
    config = run["config"]
    for change, message in (
        ({"config": config | {"epochs": "2"}}, "config: epochs is '2', not of type int"),
        ({"config": config | {"epochs": 0}}, "run.json: --epochs=0: must be at least 1"),
        ({"config": config | {"epoch": 1}}, "config: 'epoch' is not known"),
        ({"members": run["members"][::-1]}, "its members are not numbered from 0"),
        ({"members": [{"index": 0}]}, "members: the field 'seed' is missing"),
        ({"members": run["members"][:1]}, "member 1 of results.csv is missing from run.json"),
    ):
        (tmp_path / "run.json").write_text(json.dumps(run | change))
        (tmp_path / "results.csv").write_bytes((run_dir / "results.csv").read_bytes())
        with pytest.raises(ValueError, match=message):
            trained.load_run(tmp_path)
    with pytest.raises(ValueError, match="selection 'loss=1'; there are: final"):
        next(trained.networks_at(trained.load_run(run_dir), "loss=1"))
