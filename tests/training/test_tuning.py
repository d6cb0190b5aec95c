"""The fastest way to train many networks: found by timing, kept in the cache and in run.json."""

import json

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import normjax
from normjax.networks.classifier import make_classifier
from normjax.plots import paper as plotting
from normjax.training import plan
from normjax.training.ensemble import make_ensemble, map_members, shard_members, share
from normjax.training.strategies import ALL, STRATEGIES, strategies_of, use_strategy
from normjax.training.tuning import CACHE_FILE, find_fastest
from tests.helpers.classifiers import classifier_of

SHAPE = (8, 8, 1)
SETTINGS = {"batch_size": 4, "image_shape": SHAPE}
NUM_NETWORKS = len(jax.local_devices())


def make(name, model="linear"):
    """The functions of a strategy for tiny images."""
    return make_ensemble(
        use_strategy(classifier_of(model, SHAPE), SHAPE, name),
        optax.sgd(0.05),
        batch_size=4,
        target_losses=(),
        norms=(),
        at_once=STRATEGIES[name].at_once,
    )


class Watch:
    """A clock that advances by the cost of the strategy made last, and counts what was made."""

    def __init__(self, **cost):
        self.cost, self.made, self.now = cost, [], 0.0

    def make(self, name):
        self.made.append(name)
        if self.cost[name] is None:
            ensemble = make("grouped")
            return ensemble._replace(train_epoch=self.fail)
        return make("grouped")

    def fail(self, *_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    def __call__(self):
        self.now += self.cost[self.made[-1]] or 0.0 if self.made else 0.0
        return self.now

    def find(self, **settings):
        return find_fastest(
            self.make,
            list(self.cost),
            num_networks=NUM_NETWORKS,
            places=len(jax.local_devices()),
            settings={**SETTINGS, **settings},
            clock=self,
        )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMJAX_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / CACHE_FILE


def test_the_fastest_is_found_once_for_each_setting(cache, capsys):
    watch = Watch(one_by_one=0.3, patches=0.1, grouped=0.2, loop=None)
    assert watch.find() == "patches"
    assert watch.made == ["one_by_one", "patches", "grouped", "loop"]
    assert "--conv=auto: patches (ms per network and step: one_by_one" in capsys.readouterr().err
    (entry,) = json.loads(cache.read_text())
    step_ms = {name: 1e3 * s / NUM_NETWORKS / 2 for name, s in watch.cost.items() if s}
    assert entry["step_ms"] == pytest.approx(step_ms, rel=1e-3)

    other = Watch(one_by_one=0.1, patches=0.3, grouped=0.2, loop=0.4)
    assert other.find() == "patches" and not other.made  # from the cache
    assert other.find(matmul_precision="highest") == "one_by_one"
    assert len(json.loads(cache.read_text())) == 2


def test_a_damaged_cache_costs_the_timing_only(cache):
    cache.parent.mkdir()
    for text in ("", "{", "[1]", '[{"key": {}}]', "\0"):
        cache.write_text(text)
        assert Watch(patches=0.2, grouped=0.1).find() == "grouped"
        assert json.loads(cache.read_text())[0]["fastest"] == "grouped"
    cache.unlink()
    cache.mkdir()
    assert Watch(patches=0.2, grouped=0.1).find() == "grouped"


def test_without_memory_the_first_is_taken_and_not_remembered(cache):
    watch = Watch(one_by_one=None, patches=None)
    assert watch.find() == "one_by_one"
    assert not cache.exists()


@pytest.mark.slow
def test_strategies_train_the_same_networks():
    """One epoch of two networks a device, losses and variables to float32 rounding."""
    num_networks = 2 * NUM_NETWORKS
    rng = np.random.default_rng(0)
    images = share(rng.integers(0, 256, (8, *SHAPE), np.uint8))
    labels = shard_members(rng.integers(0, 10, (num_networks, 8)).astype(np.int32))
    keys = shard_members(jax.random.split(jax.random.key(0), num_networks))
    results = []
    for name in ("one_by_one", "loop", "tiles_2x2"):
        ensemble = make(name, "convnet5")
        state = ensemble.init(keys, None)
        state, metrics = ensemble.train_epoch(state, labels, images, share(jax.random.key(1)))
        results.append(jax.tree.leaves(jax.device_get((metrics.loss, state.variables))))
        for actual, expected in zip(results[-1], results[0], strict=True):
            np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, ALL])
def test_members_in_groups(at_once):
    members = shard_members(np.arange(5.0 * NUM_NETWORKS, dtype=np.float32))
    actual = map_members(lambda x, y: x * y, num_shared=1, at_once=at_once)(members, share(2.0))
    np.testing.assert_array_equal(actual, 2 * np.arange(5.0 * NUM_NETWORKS))


def run(folder, **settings):
    """A sweep of two tiny networks as on a GPU, as far as the choice is concerned."""
    config = normjax.SweepConfig(
        workdir=str(folder),
        train_size=8,
        test_size=8,
        corruption_levels=(0.0, 1.0),
        pretrain_epochs=1,
        epochs=4,
        batch_size=4,
        norms=("2",),
        **settings,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plotting, "draw_figures", lambda *_: [])
        patch.setattr(jax, "default_backend", lambda: "gpu")
        return normjax.run_sweep(config)


@pytest.mark.slow
def test_a_run_keeps_its_choice(tmp_path, monkeypatch):
    choices = iter(["patches", "grouped"])
    monkeypatch.setattr(plan, "find_fastest", lambda *_, **__: next(choices))
    run(tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    assert record["conv"] == "patches" and record["config"]["conv"] == "auto"
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    steps = [(line["member"], line["step"]) for line in lines]
    assert steps == [(member, step) for step in range(1, 6) for member in range(2)]

    path.write_text(json.dumps({**record, "finished": False}))
    run(tmp_path / "run", resume=True)
    assert json.loads(path.read_text())["conv"] == "patches"
    run(tmp_path / "other")
    assert json.loads((tmp_path / "other" / "run.json").read_text())["conv"] == "grouped"


def test_a_strategy_that_the_network_does_not_have(tmp_path):
    message = "--conv=patches: this network allows auto, one_by_one, groups_of_8, grouped"
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", model="linear", conv="patches")
    assert not (tmp_path / "run").exists()
    assert strategies_of(classifier_of("convnet5")) == list(STRATEGIES)


class Own(nn.Module):
    """A user's network, whose field `algorithm` means something else."""

    algorithm: str = "relu"

    @nn.compact
    def __call__(self, images):
        """A dense layer."""
        return nn.Dense(10, use_bias=False)(images.reshape(len(images), -1))


def test_a_users_field_of_the_same_name_is_left_alone():
    assert strategies_of(make_classifier(Own(), SHAPE, 10)) == [
        name for name, strategy in STRATEGIES.items() if strategy.algorithm == "platform"
    ]
