"""The gaps of eq. 4 and the classes of our networks."""

from types import SimpleNamespace

import flax.linen as nn
import numpy as np
import pytest

from normjax.generalization import eq4
from normjax.generalization.bounds import LayerShape, NetworkClass
from normjax.networks.classifier import make_classifier
from normjax.networks.models import make_model
from normjax.results.table import COLUMNS, make_table


def test_gaps_are_those_of_the_frobenius_norm():
    row = dict.fromkeys(COLUMNS, 0.5) | {"experiment": "e", "member": 0, "seed": 0, "epoch": 1}
    row |= {"family": "pretrain", "labels": "natural", "selection": "final", "norm": "2"}
    row |= {"normalized_train_excess": -0.02, "normalized_test_excess": -0.05}
    table = make_table([row, row | {"norm": "1"}, row | {"member": 1}])
    table.loc[2, "normalized_test_excess"] = np.nan
    found = eq4.frobenius_gaps(SimpleNamespace(table=table, run_dir="a"), "final")
    assert found["member"].tolist() == [0, 1]
    np.testing.assert_allclose(found["gap"], [0.03, np.nan], rtol=1e-12)
    with pytest.raises(ValueError, match="a: all networks at selection 'final' diverged"):
        eq4.frobenius_gaps(SimpleNamespace(table=table[2:], run_dir="a"), "final")
    with pytest.raises(ValueError, match="no results for norm '2'; there are: 1"):
        eq4.frobenius_gaps(SimpleNamespace(table=table[1:2], run_dir="a"), "final")


class Own(nn.Module):
    """A user's network: one dense layer, or more than the bounds know."""

    kind: str = ""

    @nn.compact
    def __call__(self, images):
        """Flatten and multiply."""
        x = images
        if self.kind == "pool":
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        if self.kind == "gate":
            x = nn.Dense(5, use_bias=False)(x) * nn.Dense(5, use_bias=False)(x)
        return nn.Dense(10, use_bias=False, name="read")(x)


def test_the_classes_of_networks():
    def class_of(model):
        dataset = SimpleNamespace(num_classes=10, image_shape=(32, 32, 3))
        classifier = make_classifier(model, dataset.image_shape, 10)
        return eq4.class_of(SimpleNamespace(classifier=classifier, dataset=dataset))

    last = {"window": 1, "positions": 1, "width": 10}
    assert class_of(make_model("linear")) == NetworkClass(
        (LayerShape(**last, reads=1),), 3072, False
    )
    assert class_of(Own()) == class_of(make_model("linear"))
    first = {"window": 25, "width": 24, "reads": 25}
    layers = (
        LayerShape(**first, positions=784),
        LayerShape(**first, positions=576),
        LayerShape(**last, reads=576),
    )
    assert class_of(make_model("convnet3")) == NetworkClass(layers, 3072, True)
    with pytest.raises(ValueError, match=r"eq. 4 has no bounds for networks with pooling"):
        class_of(Own("pool"))
    with pytest.raises(ValueError, match="the layers are not a chain"):
        class_of(Own("gate"))
    with pytest.raises(ValueError, match="layer 'params/Conv_1' has a bias"):
        class_of(make_model("convnet5", batch_norm=True))
