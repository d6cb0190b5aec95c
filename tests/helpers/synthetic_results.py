"""A results table and settings like a run's, made from a formula: nothing is trained."""

import numpy as np

from normjax.results.table import make_table

# The fields of an `experiments.SweepConfig`.
CONFIG = {
    "workdir": "runs/x",
    "dataset": "digits",
    "data_dir": None,
    "train_size": 100,
    "test_size": None,
    "model": "convnet3",
    "batch_norm": False,
    "corruption_levels": (0.0, 0.5),
    "corruption": "swap",
    "init_stds": (),
    "num_seeds": 1,
    "seed": 0,
    "pretrain_epochs": 1,
    "epochs": 2,
    "batch_size": 32,
    "learning_rate": 0.01,
    "momentum": 0.9,
    "target_losses": (0.01,),
    "norms": ("2",),
    "test_every": 0,
    "members_per_group": None,
    "checkpoint_every": 1,
    "resume": True,
}


def synthetic_table(
    levels=(0.0, 0.1, 0.5, 1.0), num_seeds=3, norms=("2", "1/100"), selections=("final",), seed=0
):
    """Return networks whose test margins shrink, and whose norms grow, with the level."""
    rng = np.random.default_rng(seed)
    rows = []
    for selection in selections:
        for member, (level, repeat) in enumerate(np.ndindex(len(levels), num_seeds)):
            level = levels[level]
            train_margin = 17 + 3 * level + 0.8 * rng.normal()
            test_margin = train_margin * (0.65 - 0.15 * level) + 0.1 * rng.normal()
            rho = 260 * (1 + 1.9 * level) * np.exp(0.05 * rng.normal())
            train_loss = 3e-4 * np.exp(0.3 * rng.normal())
            test_loss = 1.9 + 0.8 * level + 0.05 * rng.normal()
            test_error = 0.38 + 0.14 * level + 0.004 * rng.normal()
            for norm in norms:
                product_norm = rho * {"2": 1.0, "1/100": 37.0}[norm]
                train_excess = -train_margin / product_norm
                test_excess = -test_margin / product_norm
                rows.append(
                    dict(
                        experiment="random_pretrain",
                        member=member,
                        seed=repeat,
                        family="pretrain",
                        level=level,
                        labels="natural",
                        selection=selection,
                        epoch=100,
                        norm=norm,
                        product_norm=product_norm,
                        train_loss=train_loss,
                        train_error=0.0,
                        test_loss=test_loss,
                        test_error=test_error,
                        normalized_train_loss=np.log(10) + train_excess,
                        normalized_test_loss=np.log(10) + test_excess,
                        normalized_train_error=0.0,
                        normalized_test_error=test_error,
                        normalized_train_excess=train_excess,
                        normalized_test_excess=test_excess,
                    )
                )
    return make_table(rows)
