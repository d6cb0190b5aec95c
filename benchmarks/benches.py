"""The benchmarks: contenders and settings, and the ratios that summarize them.

This module does not import JAX or PyTorch; only the measured processes do.
"""

import functools
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence

from benchmarks.process import peak_megabytes, run_python, seconds_of, wall_seconds
from benchmarks.timing import Case, Row, measure

MEMBERS = (1, 4, 16)
BATCHES = (128, 1024)
NUM_IMAGES = 5_000
NORMJAX, FLAX, TORCH = (
    "benchmarks.normjax_contenders",
    "benchmarks.flax_contender",
    "benchmarks.torch_contenders",
)
PYTORCH_WAYS = {
    "PyTorch eager NCHW": "eager",
    "PyTorch eager channels_last": "channels_last",
    "PyTorch vmap": "vmap",
}
PYTORCH_GPU_WAYS = {"PyTorch CUDA graph": "cuda_graph", "PyTorch compile": "compile"}
RATIOS = (  # between rows with the same members and batch
    ("normjax", "best PyTorch"),
    ("normjax, shared batches", "best PyTorch"),
    ("eager", "best PyTorch"),
    ("eager NumPy", "best PyTorch"),
    ("normjax", "Flax vmap"),
    ("normjax.conv_general_dilated", "lax.conv_general_dilated"),
    ("8 norms", "plain pass"),
    ("whole epoch", "training alone"),
    ("monitor, each step", "epoch of training"),
    ("monitor, once an epoch", "epoch of training"),
)
GROWTHS = {"train3": (4, 64), "memory": (1, 64)}  # ratios between these numbers of members


def has_torch() -> bool:
    """Return whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


@functools.cache
def has_gpu() -> bool:
    """Return whether JAX sees a CUDA GPU; asked in a separate process, which frees the GPU."""
    return run_python("-c", "import jax; print(jax.default_backend())").strip() == "gpu"


def train3() -> Iterator[Row]:
    """Measure a training step of the 3-layer net."""
    return _train("train3", "convnet3")


def train5() -> Iterator[Row]:
    """Measure a training step of the 5-layer net with batch normalization."""
    return _train("train5", "convnet5")


def _train(bench: str, model: str) -> Iterator[Row]:
    for batch in BATCHES:
        for members in (*MEMBERS, 64) if has_gpu() and batch == 1024 else MEMBERS:
            cases = train_cases(model, members, batch, has_torch(), has_gpu())
            if (bench, members, batch) == ("train3", 4, 128):  # measured together for GROWTHS
                cases.append(_normjax_case(model, 64, batch))
            yield from measure(bench, cases, "ms/network-step", 1e3)


def train_cases(
    model: str, members: int, batch: int, with_torch: bool, with_gpu: bool
) -> list[Case]:
    """Return the contenders at one setting."""
    cases = [_normjax_case(model, members, batch)]
    if members == 1:
        cases.append(_normjax_case(model, members, batch, is_shared=True))
    if with_torch:
        ways = PYTORCH_WAYS | (PYTORCH_GPU_WAYS if with_gpu else {})
        steps = max(1, 4 // members)  # the cost per step does not depend on their number
        cases += [
            Case(
                name, members, batch, f"{TORCH}:prepare_train", (model, members, batch, steps, way)
            )
            for name, way in ways.items()
        ]
    # Above this size, a step takes minutes on a CPU, and per network no less than with 4 members.
    if with_gpu or members * batch <= 1024:
        args = (model, members, batch)
        cases.append(Case("Flax vmap", members, batch, f"{FLAX}:prepare_vmap", args))
    return cases


def _normjax_case(model: str, members: int, batch: int, is_shared: bool = False) -> Case:
    num_images = batch * (4 if batch < 1024 else 2)  # an epoch of a few steps
    args = (model, members, batch, num_images, is_shared)
    name = "normjax, shared batches" if is_shared else "normjax"
    return Case(name, members, batch, f"{NORMJAX}:prepare_train", args)


def own() -> Iterator[Row]:
    """Compare two convolutions in a sweep of a user's own network, the 3-layer net in Flax."""
    cases = [
        Case(f"{name}.conv_general_dilated", 2, 128, f"{FLAX}:prepare_own", (is_ours, 2, 128, 4))
        for name, is_ours in (("normjax", True), ("lax", False))
    ]
    yield from measure("own", cases, "ms/network-step", 1e3)


def evaluate() -> Iterator[Row]:
    """Compare evaluation under 8 norms with one plain forward pass."""
    ways = {"8 norms": "prepare_evaluate", "plain pass": "prepare_plain_pass"}
    cases = [
        Case(name, 4, None, f"{NORMJAX}:{prepare}", ("convnet3", 4, NUM_IMAGES))
        for name, prepare in ways.items()
    ]
    yield from measure("evaluate", cases, "ms/network", 1e3)


def normalize() -> Iterator[Row]:
    """Compare ways to normalize the parameters of the 3-layer net."""
    for members, repeats in ((1, 50), (64, 2)):
        ways = {"normjax": (f"{NORMJAX}:prepare_normalize", (members, repeats))}
        if members == 1:
            eager = f"{NORMJAX}:prepare_normalize_eager"
            ways |= {
                "eager": (eager, (repeats, False)),
                "eager NumPy": (eager, (repeats, True)),
            }
        if has_torch():
            ways["PyTorch loop"] = (f"{TORCH}:prepare_normalize", (members, repeats))
        cases = [Case(name, members, None, *way) for name, way in ways.items()]
        yield from measure("normalize", cases, "us/network", 1e6)


def epoch() -> Iterator[Row]:
    """Compare a full epoch of the second phase with its training alone."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--epochs=60", "--num_seeds=2", "--target_losses=0.0044", "--norms=2,1/100")
        seconds = json.loads(
            run_python("-m", "benchmarks.second_phase", f"--workdir={folder}", *flags)
        )
    for contender, values in seconds.items():
        yield Row("epoch", contender, 2, 128, statistics.median(values), "s/epoch", None)


def monitor() -> Iterator[Row]:
    """Compare `normjax.monitor` in a training loop with an epoch of training."""
    training = (f"{NORMJAX}:prepare_train", ("convnet3", 1, 128, NUM_IMAGES))
    steps = -(-NUM_IMAGES // 128)
    ways = {
        "epoch of training": (*training, steps),
        "monitor, each step": (f"{NORMJAX}:prepare_monitor", (128, steps), 1),
        "monitor, once an epoch": (f"{NORMJAX}:prepare_monitor", (NUM_IMAGES, 1), 1),
    }
    cases = [Case(name, 1, 128, prepare, args) for name, (prepare, args, _) in ways.items()]
    for row in measure("monitor", cases, "ms/epoch", 1e3):
        yield row._replace(value=row.value * ways[row.contender][2])


def memory() -> Iterator[Row]:
    """Measure the peak memory of a process that trains one epoch of 5,000 images."""
    for members in (*MEMBERS, 64):
        prepare = f"prepare_train('convnet3', {members}, 128, {NUM_IMAGES}).call()"
        value = peak_megabytes(f"from {NORMJAX} import prepare_train; {prepare}")
        yield Row("memory", "normjax", members, 128, value, "MB", None)


def startup() -> Iterator[Row]:
    """Time imports in fresh processes, and the quickstart from a cold start."""
    statements = {
        "import jax": ("import jax", "pass"),
        "import normjax, after jax": ("import normjax", "import jax"),
        "two of its names, after jax": (
            "from normjax import normalize_params, make_model",
            "import jax",
        ),
    }
    seconds = {name: [] for name in statements}
    for _ in range(6):
        for name, (statement, after) in statements.items():
            seconds[name].append(seconds_of(statement, after))
    for name, values in seconds.items():  # the first round fills the page cache
        yield Row("startup", name, None, None, statistics.median(values[1:]), "s", None)

    with tempfile.TemporaryDirectory() as folder:
        flagfile = "--flagfile=experiments/flagfiles/quickstart.flags"
        command = ("-m", "experiments.random_pretrain", flagfile, f"--workdir={folder}/run")
        yield Row("startup", "quickstart", None, None, wall_seconds(command), "s", None)


BENCHES = {
    fn.__name__: fn
    for fn in (train3, train5, own, evaluate, normalize, epoch, monitor, memory, startup)
}


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Return the ratios of rows: `RATIOS` within a setting, `GROWTHS` between two settings."""
    settings = {}
    for row in rows:
        settings.setdefault((row.bench, row.members, row.batch), {})[row.contender] = row.value
    found = []
    for setting, values in settings.items():
        torch = [value for name, value in values.items() if name.startswith("PyTorch")]
        if torch:
            values = {**values, "best PyTorch": min(torch)}
        for over, under in RATIOS:
            if over in values and under in values:
                found.append(_ratio(*setting, f"{over} / {under}", values[over] / values[under]))
    for bench, (few, many) in GROWTHS.items():
        values = [settings.get((bench, members, 128), {}).get("normjax") for members in (few, many)]
        if all(values):
            name = f"normjax, {many} / {few} members"
            found.append(_ratio(bench, many, 128, name, values[1] / values[0]))
    return found


def _ratio(bench, members, batch, contender, value) -> Row:
    return Row(bench, contender, members, batch, value, "ratio", None)
