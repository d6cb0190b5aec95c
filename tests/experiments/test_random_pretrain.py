"""The experiment from its flags to its report, on 8x8 digits."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
from PIL import Image

from normjax import load_dataset, load_member
from normjax.results.table import read_results
from normjax.training.ensemble import make_order_key
from normjax.training.members import first_labels, make_members
from normjax.training.step import init_state, make_train_epoch, make_train_step, reset_optimizer
from tests.helpers import reference
from tests.helpers.classifiers import classifier_of

SIZES = {"train": 100, "test": 45}
NORMS = ("2", "1/100")
ARGUMENTS = (
    "--dataset=digits",
    "--train_size=100",
    "--test_size=45",
    "--corruption_levels=0,0.5,1",
    "--pretrain_epochs=2",
    "--epochs=24",
    "--batch_size=32",
    "--learning_rate=0.1",
    "--target_losses=0.01",
    f"--norms={','.join(NORMS)}",
)
HEADER = (
    "experiment,member,seed,family,level,labels,selection,epoch,norm,product_norm,"
    "train_loss,train_error,test_loss,test_error,"
    "normalized_train_loss,normalized_test_loss,normalized_train_error,normalized_test_error,"
    "normalized_train_excess,normalized_test_excess"
)


@pytest.fixture(scope="module")
def run_dir(invoke, tmp_path_factory):
    """One finished run, looked at by many tests."""
    run_dir = tmp_path_factory.mktemp("runs") / "first"
    invoke(*ARGUMENTS, f"--workdir={run_dir}", figures=True)
    return run_dir


@pytest.fixture
def config(invoke):
    configs = []
    invoke(*ARGUMENTS, main=configs.append)
    return configs[0]


def rows_of(run_dir):
    return list(read_results(run_dir).itertuples(index=False))


def metrics_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


# --- what a run leaves behind


def test_a_run_leaves_the_contracts_files(run_dir, invoke):
    names = {path.name for path in run_dir.iterdir()}
    files = {"flags.txt", "run.json", "metrics.jsonl", "results.csv", "summary.json"}
    assert names == files | {"report.html", "checkpoints", "figures", ".lock"}
    run = json.loads((run_dir / "run.json").read_text())
    assert run["finished"] is True and run["wall_time_s"] > 0
    assert run["groups"] == [[0, 1, 2]] and run["image_shape"] == [8, 8, 1]
    assert (run["train_images"], run["test_images"], run["num_classes"]) == (100, 45, 10)
    assert {"python", "jax", "flax", "numpy"} <= run["versions"].keys() and run["devices"]
    again = []
    invoke(f"--flagfile={run_dir / 'flags.txt'}", main=again.append)
    assert run["config"] == json.loads(json.dumps(dataclasses.asdict(again[0])))


def test_results_have_a_row_per_member_selection_and_norm(run_dir):
    assert (run_dir / "results.csv").read_text().splitlines()[0] == HEADER
    rows = rows_of(run_dir)
    expected = [
        (member, level, selection, norm)
        for member, level in enumerate((0.0, 0.5, 1.0))
        for selection in ("final", "loss=0.01")
        for norm in NORMS
    ]
    assert [(row.member, row.level, row.selection, row.norm) for row in rows] == expected
    for row in rows:
        assert (row.experiment, row.family, row.labels) == (
            "random_pretrain",
            "pretrain",
            "natural",
        )
        assert row.seed == 0 and (row.epoch == 24 or row.selection != "final")
        assert row.normalized_train_error == row.train_error
        assert row.normalized_test_error == row.test_error
        for split in ("train", "test"):
            loss = getattr(row, f"normalized_{split}_loss")
            excess = getattr(row, f"normalized_{split}_excess")
            assert loss - excess == pytest.approx(np.log(10), rel=1e-14) and excess != 0
            # An error is a number of images.
            wrong = getattr(row, f"{split}_error") * SIZES[split]
            assert wrong == pytest.approx(round(wrong), abs=1e-9)
    assert all(row.train_error == 0 < row.test_error < 0.6 for row in rows)
    assert len({row.test_loss for row in rows}) == 6  # three members at two selections


def test_metrics_have_a_line_per_member_and_epoch(run_dir):
    lines = metrics_of(run_dir)
    expected = [(step, member) for step in range(1, 27) for member in range(3)]
    assert [(line["step"], line["member"]) for line in lines] == expected
    for line in lines:
        is_pretraining = line["step"] <= 2
        assert line["phase"] == ("pretrain" if is_pretraining else "train")
        assert line["epoch"] == line["step"] - (0 if is_pretraining else 2)
        assert ("train_loss" in line) == (not is_pretraining)
        assert 0 < line["running_loss"] < 4 and 0 <= line["running_error"] <= 1
        assert (line["level"], line["seed"]) == (line["member"] / 2, 0)
    # On corrupted labels there is less to learn.
    pretrained = [line["running_error"] for line in lines if line["step"] == 2]
    assert pretrained[0] < pretrained[2]


def test_the_last_lines_are_the_final_networks(run_dir):
    last = metrics_of(run_dir)[-3:]
    rows = [row for row in rows_of(run_dir) if (row.selection, row.norm) == ("final", "2")]
    for line, row in zip(last, rows, strict=True):
        assert line["train_loss"] == pytest.approx(row.train_loss, rel=1e-5)
        assert line["train_error"] == row.train_error
        # The last epoch's mean is near the last network's: 1% of the loss is left to gain by then.
        assert line["running_normalized_excess"] == pytest.approx(
            row.normalized_train_excess, rel=0.05
        )


def test_a_snapshot_is_the_nearest_epoch_without_training_errors(run_dir):
    lines = metrics_of(run_dir)
    for row in rows_of(run_dir):
        if row.selection != "loss=0.01":
            continue
        candidates = [
            (abs(line["train_loss"] - 0.01), line["epoch"], line["train_loss"])
            for line in lines
            if line["member"] == row.member and line.get("train_error") == 0
        ]
        assert len(candidates) > 1
        _, epoch, loss = min(candidates)
        assert row.epoch == epoch and row.train_loss == pytest.approx(loss, rel=1e-5)


def test_the_summarys_fit_is_that_of_the_table(run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    assert [(found["selection"], found["norm"]) for found in summary] == [
        (selection, norm) for selection in ("final", "loss=0.01") for norm in NORMS
    ]
    for found in summary:
        x, y = np.array(
            [
                (row.normalized_train_loss, row.normalized_test_loss)
                for row in rows_of(run_dir)
                if (row.selection, row.norm) == (found["selection"], found["norm"])
            ]
        ).T
        slope, intercept = np.polyfit(x - x.mean(), y, 1)
        assert found["fit"]["slope"] == pytest.approx(slope, rel=1e-5)
        assert found["fit"]["intercept"] == pytest.approx(intercept - slope * x.mean(), rel=1e-5)
        assert found["num_networks"] == 3 and found["left_out"] == {}


def test_figures_and_report_are_there(run_dir):
    stems = {path.stem for path in (run_dir / "figures").glob("*.png")}
    per_norm = ("normalized_fit", "normalized_and_raw", "four_panels", "error_against_product_norm")
    assert stems == {
        f"{kind}__{selection}__{norm}"
        for kind in per_norm
        for selection in ("final", "loss_0.01")
        for norm in ("2", "1_100")
    } | {"losses_against_level__final", "losses_against_level__loss_0.01"}
    for stem in stems:
        with Image.open(run_dir / "figures" / f"{stem}.png") as image:
            assert min(image.size) > 500 and len(np.unique(np.asarray(image.convert("L")))) > 50
        assert (run_dir / "figures" / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
    page = (run_dir / "report.html").read_text()
    num_shown = page.count("data:image/png;base64,")
    assert page.startswith("<!DOCTYPE html>") and num_shown > 5 and len(page) < 3e6
    assert f"; {len(stems) - num_shown} that would make this page too large are only" in page
    assert "digits" in page and "--learning_rate=0.1" in page


# --- is it right?


def assert_rows_are(run_dir, member, selection, logits_of, product_norms):
    """Compares a member's rows with float64 logits of another implementation."""
    dataset = load_dataset("digits", train_size=SIZES["train"], test_size=SIZES["test"])
    rows = [row for row in rows_of(run_dir) if (row.member, row.selection) == (member, selection)]
    assert len(rows) == len(NORMS)
    for split in ("train", "test"):
        images, labels = getattr(dataset, split)
        logits = logits_of(images)
        for row, product in zip(rows, product_norms, strict=True):
            assert row.product_norm == pytest.approx(product, rel=1e-6)
            assert getattr(row, f"{split}_loss") == pytest.approx(
                reference.cross_entropy(logits, labels).mean(), rel=2e-5
            )
            error = reference.error(logits, labels).mean()
            assert getattr(row, f"{split}_error") == pytest.approx(error, abs=1e-9)
            normalized = logits / product
            loss = reference.cross_entropy(normalized, labels).mean()
            actual = getattr(row, f"normalized_{split}_loss")
            assert actual == pytest.approx(loss, rel=0, abs=1e-6)
            excess = reference.excess(normalized, labels).mean()
            actual = getattr(row, f"normalized_{split}_excess")
            assert actual == pytest.approx(excess, rel=1e-5, abs=0)


@pytest.mark.parametrize("selection", ["final", "loss=0.01"])
def test_a_saved_member_gives_its_row_in_numpy_float64(run_dir, selection):
    _, variables = load_member(run_dir, 1, selection)
    params = variables["params"]
    products = [reference.product_norm(params, p, s) for p, s in ((2, 1), (1, 100))]
    logits_of = lambda images: reference.convnet3_logits(params, images)  # noqa: E731
    assert_rows_are(run_dir, 1, selection, logits_of, products)


def test_a_saved_member_gives_its_row_in_pytorch_float64(run_dir):
    torch = pytest.importorskip("torch", reason="an optional extra: the same is tested with numpy")
    _, variables = load_member(run_dir, 2)
    layers = variables["params"]
    kernels = [
        torch.tensor(layers[f"Conv_{i}"]["kernel"]).double().permute(3, 2, 0, 1) for i in (0, 1)
    ]
    bias = torch.tensor(layers["Conv_0"]["bias"]).double()
    dense = torch.tensor(layers["Dense_0"]["kernel"]).double()

    def logits_of(images):
        x = torch.tensor(images).double().permute(0, 3, 1, 2)
        x = (x / 255 - 0.5) / 0.5
        x = torch.relu(torch.nn.functional.conv2d(x, kernels[0], bias))
        x = torch.relu(torch.nn.functional.conv2d(x, kernels[1]))
        return (x.permute(0, 2, 3, 1).flatten(1) @ dense).numpy()

    first = torch.cat([kernels[0].flatten(), bias])
    products = [
        float(
            torch.linalg.vector_norm(first, p)
            * torch.linalg.vector_norm(kernels[1], p)
            * torch.linalg.vector_norm(dense, p)
        )
        / scale**3
        for p, scale in ((2, 1), (1, 100))
    ]
    assert_rows_are(run_dir, 2, "final", logits_of, products)


def test_the_same_flags_give_the_same_bytes(run_dir, invoke, tmp_path):
    invoke(*ARGUMENTS, f"--workdir={tmp_path / 'second'}")
    second = (tmp_path / "second" / "results.csv").read_bytes()
    assert second == (run_dir / "results.csv").read_bytes()


# --- members in a sweep

LINEAR = ("--model=linear", "--learning_rate=0.001", "--pretrain_epochs=2", "--epochs=3")


@pytest.fixture(scope="module")
def linear_run(invoke, tmp_path_factory):
    """A short run of the linear network, which comes nowhere near its target."""
    folder = tmp_path_factory.mktemp("runs") / "linear"
    invoke(*ARGUMENTS, *LINEAR, f"--workdir={folder}", "--resume")
    return folder


def test_a_member_is_what_one_network_alone_becomes(linear_run, config):
    """Its two phases once more, with the functions for one network and no sweep."""
    members = make_members("random_pretrain", config)
    dataset = load_dataset("digits", train_size=SIZES["train"])
    images, true = dataset.train
    classifier, tx = classifier_of("linear"), optax.sgd(0.001, momentum=0.9)
    epoch = jax.jit(make_train_epoch(make_train_step(classifier, tx), config.batch_size))
    state = init_state(classifier, tx, members[2].key(0))
    for step in range(5):
        if step == 2:
            state = reset_optimizer(tx, state)
        labels = first_labels(config, dataset, members[2]) if step < 2 else true
        state, metrics = epoch(state, images, labels, jax.random.fold_in(make_order_key(0), step))
    loaded = load_member(linear_run, 2)[1]["params"]["Dense_0"]["kernel"]
    kernel = state.variables["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(loaded, kernel, rtol=0, atol=1e-6)
    line = metrics_of(linear_run)[-1]
    assert (line["member"], line["step"]) == (2, 5)
    assert line["running_loss"] == pytest.approx(float(metrics.loss), rel=1e-5)


def test_groups_change_nothing(linear_run, invoke, tmp_path):
    # Nor does a checkpoint after every epoch; this one has no snapshots to hold.
    how = ("--members_per_group=1", "--checkpoint_every=1", "--target_losses=")
    invoke(*ARGUMENTS, *LINEAR, f"--workdir={tmp_path / 'apart'}", *how)
    run = json.loads((tmp_path / "apart" / "run.json").read_text())
    assert run["groups"] == [[0], [1], [2]]
    together, apart = rows_of(linear_run), rows_of(tmp_path / "apart")
    assert len(together) == len(apart) == 6
    for ours, alone in zip(together, apart, strict=True):
        for name in ("train_loss", "test_loss", "product_norm", "normalized_test_excess"):
            assert getattr(alone, name) == pytest.approx(getattr(ours, name), rel=1e-5)


def test_a_target_that_is_never_reached_gives_no_row_and_no_network(linear_run):
    rows = rows_of(linear_run)
    assert all(row.selection == "final" and row.train_error > 0 for row in rows)
    with pytest.raises(ValueError, match=r"no network 'loss=0.01'; it has: final"):
        load_member(linear_run, 0, "loss=0.01")


def test_diverged_members_are_left_out_by_name(invoke, tmp_path):
    folder = tmp_path / "run"
    invoke(*ARGUMENTS, *LINEAR, "--learning_rate=1e38", f"--workdir={folder}")
    rows = rows_of(folder)
    assert len(rows) == 6 and all(np.isnan(row.train_loss) for row in rows)
    found = json.loads((folder / "summary.json").read_text())[0]
    assert found["num_networks"] == 0 and found["fit"] is None
    assert [reason[:8] for reason in found["left_out"].values()] == ["diverged"] * 3
    assert metrics_of(folder)[-1]["train_loss"] is None


# --- members and labels


def test_members_are_levels_times_seeds(config):
    config = dataclasses.replace(config, num_seeds=2)
    members = make_members("random_pretrain", config)
    assert [(m.index, m.level, m.seed, m.family) for m in members] == [
        (0, 0.0, 0, "pretrain"),
        (1, 0.0, 1, "pretrain"),
        (2, 0.5, 0, "pretrain"),
        (3, 0.5, 1, "pretrain"),
        (4, 1.0, 0, "pretrain"),
        (5, 1.0, 1, "pretrain"),
    ]


@pytest.mark.parametrize("corruption", ["swap", "redraw"])
def test_each_member_has_its_own_corrupted_labels(config, corruption):
    config = dataclasses.replace(config, num_seeds=2, corruption=corruption)
    members = make_members("random_pretrain", config)
    dataset = load_dataset("digits", train_size=1000)
    true = dataset.train.labels.copy()
    labels = np.array([first_labels(config, dataset, member) for member in members])
    np.testing.assert_array_equal(dataset.train.labels, true)
    np.testing.assert_array_equal(first_labels(config, dataset, members[3]), labels[3])
    wrong = (labels != true).mean(axis=1)
    # A chosen label comes out right one time in ten; 5 standard errors of 1000 draws.
    np.testing.assert_allclose(wrong, [0, 0, 0.45, 0.45, 0.9, 0.9], atol=0.05)
    assert (labels[2] != labels[3]).mean() > 0.3 and (labels[4] != labels[5]).mean() > 0.8
    counts = np.array([np.bincount(row, minlength=10) for row in labels])
    assert (counts == counts[0]).all() == (corruption == "swap")
