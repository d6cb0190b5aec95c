"""CIFAR-100 from an archive in the official layout to the results, the summary and the page."""

import json
import math

import numpy as np
import pytest

from experiments import init_scale
from normjax import load_member
from normjax.data.cifar import LAYOUTS
from normjax.results.table import on_own_labels, read_results
from tests.data.test_archives import BINARY, draw_examples, write_files, write_tar
from tests.helpers import reference

pytestmark = pytest.mark.slow

NUM_TRAIN, NUM_TEST = 40, 24


def test_cifar100_from_its_archive_to_its_results(invoke, tmp_path):
    layout = LAYOUTS["cifar100"][BINARY]
    examples = draw_examples("cifar100", counts=(NUM_TRAIN, NUM_TEST))
    files = write_files("cifar100", layout, examples)
    (tmp_path / layout.archive).write_bytes(write_tar(layout, files))
    run_dir = tmp_path / "run"
    with pytest.warns(UserWarning, match="is not the official"):
        invoke(
            "--dataset=cifar100",
            f"--data_dir={tmp_path}",
            "--model=convnet5",
            "--batch_norm",
            "--init_stds=0.05,0.1,0.15",
            "--pretrain_epochs=0",
            "--epochs=2",
            "--batch_size=16",
            "--norms=2",
            f"--workdir={run_dir}",
            main=init_scale.main,
        )

    rows = list(on_own_labels(read_results(run_dir)).itertuples(index=False))
    assert [(row.member, row.family) for row in rows] == [
        *[(i, "init_scale") for i in range(3)],
        (3, "random_labels"),
    ]
    for row in (rows[0], rows[2]):
        _, variables = load_member(run_dir, row.member)
        assert variables["params"]["Conv_4"]["kernel"].shape[-1] == 100
        for split, (images, labels) in zip(("train", "test"), examples, strict=True):
            logits = reference.convnet5_logits(
                variables["params"], images, variables["batch_stats"]
            )
            loss = reference.cross_entropy(logits, labels).mean()
            assert getattr(row, f"{split}_loss") == pytest.approx(loss, rel=2e-5)
            error = np.mean(logits.argmax(-1) != labels)
            assert getattr(row, f"{split}_error") == pytest.approx(error, abs=1e-7)
            # To first order the excess over ln 100 is the mean centered margin over the norm.
            centered = logits[np.arange(len(labels)), labels] - logits.mean(-1)
            excess = getattr(row, f"normalized_{split}_excess")
            normalized = reference.cross_entropy(logits / row.product_norm, labels).mean()
            assert excess == pytest.approx(normalized - math.log(100), abs=1e-7)
            assert excess == pytest.approx(-centered.mean() / row.product_norm, abs=2e-3)
    (found,) = json.loads((run_dir / "summary.json").read_text())
    assert (found["num_classes"], found["num_networks"], found["fit"]["n"]) == (100, 4, 4)
    assert found["ln_num_classes"] == pytest.approx(math.log(100), rel=1e-12)
    run = json.loads((run_dir / "run.json").read_text())
    assert (run["num_classes"], run["train_images"]) == (100, NUM_TRAIN)
