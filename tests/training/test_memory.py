"""Memory: what a group needs, how many networks fit, and what happens where that was too much."""

import json
import math
import re

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax.norms import parse_norm
from normjax.report import run_page as report
from normjax.results.table import read_results
from normjax.training import memory, phases, plan
from normjax.training.ensemble import Member, make_ensemble, make_order_key, shard_members, share
from normjax.training.memory import group_memory, host_memory, is_out_of_memory, networks_that_fit
from tests.helpers.classifiers import classifier_of
from tests.helpers.tables import assert_close

pytestmark = pytest.mark.slow

NUM_TRAIN, NUM_TEST, NUM_PARAMS, NUM_TARGETS = 90, 40, 64 * 10, 2
SHAPES = {"train_shape": (NUM_TRAIN, 8, 8, 1)}

# --- how many fit


@pytest.mark.parametrize(
    ("available", "expected"),
    [(1e9, 12), (1625, 12), (1624, 11), (875, 6), (874, 5), (250, 1), (1, 1), (None, 12)],
)
def test_as_many_networks_as_fit(available, expected):
    """100 bytes for each and 100 beside, in 0.8 of what is free."""
    asked = []

    def needed(count):
        asked.append(count)
        return 100 + 100 * count

    assert networks_that_fit(needed, 12, available) == expected
    # Nothing is compiled but the program of the whole group where that fits.
    assert asked == ([] if available is None else [12] if expected == 12 else [12, 1])


def test_one_network_is_tried_and_what_cannot_be_known_is_not_decided():
    assert networks_that_fit(lambda _: 1e9, 1, 10) == 1
    assert networks_that_fit(lambda _: None, 12, 10) == 12


def test_a_program_that_cannot_even_be_compiled_is_too_large():
    needed = lambda count: math.inf if count > 6 else 100.0 * count  # noqa: E731
    assert networks_that_fit(needed, 12, 1e9) == 6
    assert networks_that_fit(needed, 40, 1e9) == 5
    assert networks_that_fit(needed, 12, 500) == 4


# --- what a group needs


def make():
    return make_ensemble(
        classifier_of("linear"),
        optax.sgd(0.05, momentum=0.9),
        batch_size=32,
        target_losses=(0.1,) * NUM_TARGETS,
        norms=[parse_norm("2")],
    )


def test_the_estimate_holds_what_is_on_a_device():
    """Parameters, momentum, snapshots, labels and images, counted by hand: no more is certain."""
    ensemble = make()
    alone, five = (group_memory(ensemble, count, **SHAPES) for count in (1, 5))
    state = 4 * 2 * NUM_PARAMS
    snapshots = 4 * NUM_TARGETS * (NUM_PARAMS + 2) + 4
    images = NUM_TRAIN * 8 * 8
    each = state + snapshots + 4 * NUM_TRAIN
    # `track` reads the state and the snapshots, and writes new snapshots.
    assert five >= 5 * (each + snapshots) + images
    assert 4 * (each + snapshots) <= five - alone <= 4 * 3 * each
    tested = group_memory(ensemble, 5, **SHAPES, test_shape=(NUM_TEST, 8, 8, 1))
    assert tested - five == 5 * 4 * NUM_TEST + NUM_TEST * 8 * 8


def test_the_estimate_compiles_what_the_run_uses():
    compilations = []

    def listen(event, _duration, **_):
        if event.endswith("backend_compile_duration"):
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    ensemble = make()
    num_devices = len(jax.local_devices())
    keys = [Member(i, i, "default_init", 0.0).key(0) for i in range(2 * num_devices)]
    state = ensemble.init(shard_members(jnp.stack(keys)), None)
    snapshots = ensemble.init_snapshots(state)
    labels = shard_members(np.zeros((2 * num_devices, NUM_TRAIN), np.int32))
    images = share(np.zeros(SHAPES["train_shape"], np.uint8))
    key = jax.random.fold_in(share(make_order_key(0)), 3)
    now = (jnp.int32(1), jnp.bool(True))
    compilations.clear()
    assert group_memory(ensemble, 2, **SHAPES) > 0
    assert len(compilations) >= 3
    compilations.clear()
    state, metrics = ensemble.train_epoch(state, labels, images, key)
    ensemble.track(snapshots, state, labels, metrics, images, *now)
    ensemble.evaluate(state.variables, labels, images)
    assert compilations == []


def test_a_compiler_out_of_memory_says_infinity(monkeypatch):
    def lower(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory while autotuning")

    ensemble = make()
    monkeypatch.setattr(memory, "program_bytes", lower)
    assert group_memory(ensemble, 1, **SHAPES) == math.inf


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 7 GiB"))
    assert not is_out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: 7"))
    assert not is_out_of_memory(ValueError("RESOURCE_EXHAUSTED"))


# --- what there is


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_host_memory_is_the_least_that_is_said(tmp_path):
    meminfo = write(tmp_path / "meminfo", "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    cgroup = memory.ControlGroup(*[tmp_path / name for name in ("max", "current", "stat")])
    assert host_memory(meminfo, [cgroup]) == 4000 * 1024
    write(cgroup[0], "3000000\n")
    write(cgroup[1], "1000000\n")
    assert host_memory(meminfo, [cgroup]) == 2e6
    write(cgroup[2], "anon 5\ninactive_file 400000\nactive_file 7\n")
    assert host_memory(meminfo, [cgroup]) == 2.4e6
    assert host_memory(tmp_path / "nowhere", [cgroup]) == 2.4e6
    write(cgroup[0], "max\n")
    assert host_memory(meminfo, [cgroup]) == 4000 * 1024
    assert host_memory(tmp_path / "nowhere", [cgroup]) is None


class Device:
    """A device that says so much about its memory."""

    def __init__(self, stats):
        self.memory_stats = lambda: stats


def test_the_fullest_device_decides(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    stats = [{"bytes_limit": 100, "bytes_in_use": 30}, {"bytes_limit": 100, "bytes_in_use": 45}]
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(s) for s in stats])
    assert memory.available_memory() == 55
    stats[0] = None
    assert memory.available_memory() is None


def test_cpu_devices_share_the_hosts_memory(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(memory, "host_memory", lambda: 600.0)
    monkeypatch.setattr(jax, "local_devices", lambda: [None] * 3)
    assert memory.available_memory() == 200
    monkeypatch.setattr(memory, "host_memory", lambda: None)
    assert memory.available_memory() is None


# --- a run

RUN = [
    "--dataset=digits",
    f"--train_size={NUM_TRAIN}",
    f"--test_size={NUM_TEST}",
    "--model=linear",
    "--corruption_levels=0,0.5,1",
    "--pretrain_epochs=2",
    "--epochs=5",
    "--batch_size=32",
    "--learning_rate=0.2",
    "--target_losses=0.3",
    "--norms=2",
    "--checkpoint_every=3",
]


made = []  # once for all runs of this file, which thus share what is compiled


@pytest.fixture
def shared_ensemble(monkeypatch):
    """A list with the functions that runs use; a test may put others into it."""
    used = []

    def make_shared(*args, **kwargs):
        if not made:
            made.append(make_ensemble(*args, **kwargs))
        if not used:
            used.extend(made)
        return used[0]

    monkeypatch.setattr(plan, "make_ensemble", make_shared)
    monkeypatch.setattr(report, "write_report", lambda *_: None)
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    return used


def num_of_groups(num_groups):
    """Members enough for so many groups, each with one network on every device."""
    return f"--num_seeds={math.ceil(num_groups * jax.device_count() / 3)}"


def groups_of(run_dir):
    return json.loads((run_dir / "run.json").read_text())["groups"]


def assert_same_rows(ours, theirs):
    assert_close(read_results(ours), read_results(theirs), rtol=1e-5, atol=1e-6)
    lines = [
        [json.loads(line) for line in (d / "metrics.jsonl").read_text().splitlines()]
        for d in (ours, theirs)
    ]
    steps = [sorted((line["member"], line["step"]) for line in some) for some in lines]
    assert steps[0] == steps[1] and len(set(steps[0])) == len(steps[0])


def test_what_does_not_fit_is_split_before_the_start(
    shared_ensemble, invoke, tmp_path, monkeypatch, capsys
):
    whole, split, asked = (tmp_path / name for name in ("whole", "split", "asked"))
    arguments = [*RUN, num_of_groups(3)]
    invoke(*arguments, f"--workdir={whole}")
    (members,) = groups_of(whole)
    assert "memory" not in capsys.readouterr().err
    alone = group_memory(shared_ensemble[0], 1, **SHAPES)
    monkeypatch.setattr(memory, "available_memory", lambda: 1.01 * alone / memory.SHARE)
    invoke(*arguments, f"--workdir={split}")
    count = jax.device_count()
    expected = [members[i : i + count] for i in range(0, len(members), count)]
    assert len(expected) >= 3 and groups_of(split) == expected
    said = f"memory: {len(members)} networks do not fit, using groups of {count}"
    assert said in capsys.readouterr().err.splitlines()
    assert_same_rows(split, whole)
    # The flag overrides the estimate.
    invoke(*arguments, f"--workdir={asked}", f"--members_per_group={len(members) - 1}")
    assert groups_of(asked) == [members[:-1], members[-1:]]
    assert "memory" not in capsys.readouterr().err
    assert_same_rows(asked, whole)


def too_small(function, at_call, most):
    """The function, which from a call on has no memory for more networks than that."""
    calls = []

    def call(state, *args):
        calls.append(None)
        if len(calls) >= at_call and len(jax.tree.leaves(state)[0]) > most:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes")
        return function(state, *args)

    return call


@pytest.mark.parametrize(
    ("name", "at_call", "restart"), [("train_epoch", 5, 3), ("evaluate", 1, 7)]
)
def test_out_of_memory_halves_the_group_and_loses_nothing(
    shared_ensemble, invoke, tmp_path, monkeypatch, capsys, name, at_call, restart
):
    """In the middle of training, and at its end: it goes on from the last checkpoint."""
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    arguments = [*RUN, num_of_groups(3)]
    invoke(*arguments, f"--workdir={whole}")
    (members,) = groups_of(whole)
    count = jax.device_count()
    per_device = math.ceil(len(members) / count)
    size = math.ceil(per_device / 2) * count
    fails = too_small(getattr(shared_ensemble[0], name), at_call, size)
    shared_ensemble[0] = shared_ensemble[0]._replace(**{name: fails})
    starts = []

    def epochs_progress(sweep, group, start):
        starts.append((group, start))
        return epochs(sweep, group, start)

    epochs = phases.epochs_progress
    monkeypatch.setattr(phases, "epochs_progress", epochs_progress)
    capsys.readouterr()
    invoke(*arguments, f"--workdir={halved}")
    assert groups_of(halved) == [members[i : i + size] for i in range(0, len(members), size)]
    pieces = len(groups_of(halved))
    assert pieces >= 2 and starts == [(0, 0)] + [(g, restart) for g in range(pieces)]
    said = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    (line,) = said
    assert re.fullmatch(
        rf"out of memory with {len(members)} networks \(members 0, .*\): "
        rf"continuing with groups of {size}",
        line,
    )
    assert_same_rows(halved, whole)
    assert not list((halved / "checkpoints" / "progress").iterdir())


def test_a_finished_group_is_kept_and_a_single_network_is_an_error(
    shared_ensemble, invoke, tmp_path, capsys
):
    """The memory shrinks below one network while the second group is trained."""
    count = jax.device_count()
    arguments = [*RUN, num_of_groups(3), f"--members_per_group={count}"]
    arguments.append(f"--workdir={tmp_path / 'run'}")
    invoke(*arguments, f"--workdir={tmp_path / 'whole'}")
    ensemble = shared_ensemble[0]
    shared_ensemble[0] = ensemble._replace(train_epoch=too_small(ensemble.train_epoch, 10, 0))
    with pytest.raises(SystemExit) as stop:
        invoke(*arguments)
    numbers = ", ".join(map(str, range(count, 2 * count)))
    assert stop.value.code.startswith(
        f"error: out of memory with one network on a device (members {numbers}): "
    )
    folder = tmp_path / "run" / "checkpoints"
    assert (folder / "groups" / "000.csv").exists()
    before = (folder / "groups" / "000.csv").stat().st_mtime_ns
    shared_ensemble[0] = ensemble
    invoke(*arguments, "--resume")
    assert (folder / "groups" / "000.csv").stat().st_mtime_ns == before
    assert_same_rows(tmp_path / "run", tmp_path / "whole")


def test_other_errors_are_not_taken_for_it(shared_ensemble, invoke, tmp_path):
    def fails(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    shared_ensemble.append(make()._replace(train_epoch=fails))
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        invoke(*RUN, f"--workdir={tmp_path / 'run'}")
