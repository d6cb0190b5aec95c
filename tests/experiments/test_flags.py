"""Flags: from the command line to the configuration, and every mistake as one line."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import flags
from experiments.__main__ import list_commands
from normjax.training.config import SweepConfig, at_least, setting, to_flagfile, validate
from normjax.training.interrupts import StoppedError
from normjax.training.processes import OutOfMemoryError, SettingsError, prepare_cpu
from tests.helpers import commands

ROOT = Path(__file__).parents[2]
FLAGFILES = sorted(
    path
    for path in (ROOT / "experiments" / "flagfiles").glob("*.flags")
    if path.stem not in ("linear_margin", "fixed_margin")  # have flags of their own
)


parse = functools.partial(commands.parse, SweepConfig, workdir="runs/random_pretrain")


def test_defaults_are_the_same_from_python():
    assert parse() == SweepConfig("runs/random_pretrain")
    assert parse() == SweepConfig(
        workdir="runs/random_pretrain",
        dataset="digits",
        data_dir=None,
        train_size=None,
        test_size=None,
        model="convnet3",
        batch_norm=False,
        tied="refuse",
        corruption_levels=(0.0, 0.1, 0.25, 0.5, 0.75, 1.0),
        corruption="swap",
        init_stds=(),
        num_seeds=1,
        seed=0,
        pretrain_epochs=30,
        epochs=80,
        batch_size=128,
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=0.0,
        augment=False,
        target_losses=(),
        norms=("2", "1/100"),
        test_every=0,
        members_per_group=None,
        checkpoint_every=10,
        resume=False,
        distributed="none",
    )


def test_every_flag_arrives():
    given = {
        "workdir": "some where",
        "dataset": "folder:a=b",
        "data_dir": "d",
        "train_size": 7,
        "test_size": 5,
        "model": "convnet5",
        "batch_norm": True,
        "tied": "keep",
        "corruption_levels": (0.0, 1e-4, 0.125),
        "corruption": "redraw",
        "init_stds": (0.001, 0.5),
        "num_seeds": 3,
        "seed": 11,
        "pretrain_epochs": 0,
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 0.3,
        "momentum": 0.0,
        "weight_decay": 5e-4,
        "augment": True,
        "target_losses": (0.0044, 2.0),
        "stop_at_targets": True,
        "norms": ("fro", "1/100", "spectral"),
        "test_every": 4,
        "tensorboard": True,
        "members_per_group": 2,
        "checkpoint_every": 1,
        "conv": "patches",
        "devices_per_network": 2,
        "matmul_precision": "high",
        "resume": True,
        "distributed": "localhost:12345,2,1",
    }
    assert given.keys() == {field.name for field in dataclasses.fields(SweepConfig)}
    text = {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in given.items()}
    config = parse(*[f"--{name}={value}" for name, value in text.items()])
    assert config == SweepConfig(**given)


def test_a_configuration_survives_its_flagfile(tmp_path):
    config = parse(
        "--corruption_levels=0.1,0.30000000000000004,1",
        "--learning_rate=0.1234567890123456789",
        "--target_losses=0.0044,0.00012345678901234567",
        "--nobatch_norm",
        "--resume",
    )
    path = tmp_path / "flags.txt"
    path.write_text(to_flagfile(config))
    assert parse(f"--flagfile={path}") == config


def test_lists_of_a_flagfile_are_replaced_not_appended_to(tmp_path):
    path = tmp_path / "some.flags"
    path.write_text(
        "# a comment\n--corruption_levels=0,0.5,1\n--norms=2,inf\n--target_losses=0.1\n--epochs=9\n"
    )
    config = parse(
        f"--flagfile={path}", "--corruption_levels=0.25", "--norms=1/100", "--target_losses="
    )
    assert config.corruption_levels == (0.25,)
    assert config.norms == ("1/100",)
    assert config.target_losses == ()
    assert config.epochs == 9


def test_a_command_has_defaults_of_its_own():
    own = {"workdir": "w", "init_stds": (0.1, 0.2), "num_seeds": 8}
    assert parse(**own) == SweepConfig(**own)
    assert parse("--init_stds=", "--num_seeds=2", **own) == SweepConfig("w", num_seeds=2)


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_our_flagfiles_parse(path):
    config = parse(f"--flagfile={path}")
    assert config.workdir == f"runs/{path.stem}"


def test_the_papers_settings():
    """Figures 3, 4, 5 and 9: section 'Training' of the paper."""
    for stem in ("fig03", "fig04", "fig05", "fig09"):
        config = parse(f"--flagfile={ROOT}/experiments/flagfiles/{stem}.flags")
        assert (config.dataset, config.model, config.train_size) == ("cifar10", "convnet3", None)
        assert (config.epochs, config.batch_size) == (300, 1024)
        assert (config.learning_rate, config.momentum) == (0.01, 0.9)
        assert config.corruption_levels == (0, 1e-4, 1e-3, 0.01, 0.1, 0.2, 0.5, 0.75, 1)
        assert config.target_losses == ((0.0044,) if stem in ("fig03", "fig09") else ())
        assert config.norms == (("1/100",) if stem == "fig04" else ("2",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corruption_levels=0,1.5"], "--corruption_levels=0.0,1.5: levels must lie in [0, 1]"),
        (["--corruption_levels=-0.1"], "levels must lie in [0, 1]"),
        (["--corruption_levels=nan"], "levels must lie in [0, 1]"),
        (["--corruption_levels="], "--corruption_levels=: at least one level is needed"),
        (["--corruption_levels=,"], "at least one level is needed"),
        (["--corruption_levels=0,0.5,0.50"], "no level may be repeated"),
        (
            ["--corruption_levels=low"],
            "--corruption_levels=low: must be numbers separated by",
        ),
        (["--num_seeds=0"], "--num_seeds=0: must be at least 1"),
        (["--epochs=0"], "--epochs=0: must be at least 1"),
        (["--pretrain_epochs=-1"], "--pretrain_epochs=-1: must not be negative"),
        (["--test_every=-1"], "--test_every=-1: must not be negative"),
        (["--init_stds=0.1,0"], "--init_stds=0.1,0.0: standard deviations must be positive"),
        (["--init_stds=0.1,0.1"], "--init_stds=0.1,0.1: no standard deviation may be repeated"),
        (["--batch_size=0"], "--batch_size=0: must be at least 1"),
        (["--train_size=0"], "--train_size=0: must be at least 1"),
        (["--test_size=-3"], "--test_size=-3: must be at least 1"),
        (["--members_per_group=0"], "--members_per_group=0: must be at least 1"),
        (["--checkpoint_every=0"], "--checkpoint_every=0: must be at least 1"),
        (["--seed=-1"], "--seed=-1: must lie in [0, 2^32)"),
        (["--seed=4294967296"], "--seed=4294967296: must lie in [0, 2^32)"),
        (["--seed=99999999999999999999"], "must lie in [0, 2^32)"),
        (["--learning_rate=0"], "--learning_rate=0.0: must be positive"),
        (["--learning_rate=nan"], "must be positive"),
        (["--learning_rate=inf"], "must be positive"),
        (["--momentum=1"], "--momentum=1.0: must lie in [0, 1)"),
        (["--target_losses=0.1,0"], "--target_losses=0.1,0.0: losses must be positive"),
        (["--target_losses=-0.1"], "losses must be positive"),
        (["--target_losses=nan"], "losses must be positive"),
        (["--target_losses=0.1,0.1000000001"], "must differ in their first six significant digits"),
        (["--norms=2,l2"], "unknown norm 'l2'; allowed: spectral, fro, inf, any p >= 1"),
        (["--norms=0.5"], "norm '0.5' has p < 1"),
        (["--norms="], "--norms=: at least one norm is needed"),
        (["--norms=2,2"], "--norms=2,2: no norm may be repeated"),
        (["--norms=2,fro"], "--norms=2,fro: no norm may be repeated; fro is 2"),
        (["--norms=2_0"], "--norms=2_0: unknown norm '2_0'"),
        (["--workdir="], "--workdir=: a folder is needed, not a file or an empty name"),
        (["--batch_norm"], "--batch_norm=true: only convnet5 has it"),
        (["--distributed=all"], "--distributed=all: allowed are none, auto and host:port,n,i"),
        (["--distributed=localhost:1,2"], "allowed are none, auto and host:port,n,i"),
        (["--distributed=localhost:1,2,2"], "with 0 <= i < n"),
        (["--distributed=localhost:1,0,0"], "with 0 <= i < n"),
        (["--distributed=localhost:1,2,-1"], "with 0 <= i < n"),
        (["--distributed=:1,2,0"], "as in localhost:12345,2,0"),
        (["--distributed=localhost,2,0"], "as in localhost:12345,2,0"),
        (["--distributed=localhost:0,2,0"], "as in localhost:12345,2,0"),
        (["--distributed=localhost:65536,2,0"], "as in localhost:12345,2,0"),
        (["--distributed="], "--distributed=: allowed are none"),
        (["--model=resnet"], "convnet3, convnet5, linear and package.module:function"),
        (["--corruption=shuffle"], "swap|redraw"),
        (["--epochs=ten"], "--epochs=ten"),
        (["--train_size=1.5"], "--train_size=1.5"),
        (["--no_such_flag=1"], "Unknown command line flag 'no_such_flag'"),
        (["--epoch=3"], "Unknown command line flag 'epoch'. Did you mean: epochs"),
        (["run", "--epochs=3"], "unexpected argument 'run'; options are --name=value"),
        (["--epochs", "3", "out"], "unexpected argument 'out'"),
        (["--flagfile=no/such/file.flags"], "no/such/file.flags"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    assert message in commands.error_of(parse, *arguments)


def test_validate_raises_what_the_command_line_says():
    config = parse()
    validate(config)
    with pytest.raises(ValueError, match=r"^--num_seeds=0: must be at least 1$"):
        validate(dataclasses.replace(config, num_seeds=0))


def test_prepare_cpu_makes_a_device_for_each_core(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5}, raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    prepare_cpu()
    assert os.environ["XLA_FLAGS"].split() == [
        "--xla_dump_to=x",
        "--xla_force_host_platform_device_count=3",
        "--xla_cpu_multi_thread_eigen=false",
    ]
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=7")
    prepare_cpu()
    assert os.environ["XLA_FLAGS"] == "--xla_force_host_platform_device_count=7"


def test_commands_keep_compiled_programs_unless_jax_is_told_otherwise(tmp_path):
    """In a process of its own, since these are settings of the whole process."""
    code = (
        "import jax; from normjax.training.processes import keep_compiled; keep_compiled(); "
        "jax.jit(lambda x: x + 1)(1.0); print(jax.config.jax_compilation_cache_dir)"
    )
    names = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {names[1]: "0", "NORMJAX_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def folder_of(**own):
        command = [sys.executable, "-c", code]
        env = {**environment, **own}
        return subprocess.run(command, env=env, capture_output=True, text=True).stdout.strip()

    folder = Path(folder_of())
    assert folder.parent == tmp_path and any(folder.iterdir())
    assert folder_of() == str(folder)
    assert folder_of(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own")) == str(tmp_path / "own")
    assert folder_of(JAX_ENABLE_COMPILATION_CACHE="false") == "None"
    assert folder_of(NORMJAX_CACHE_DIR=__file__) == "None"  # no folder can be made there


def test_a_mistake_as_the_shell_sees_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.random_pretrain", "--num_seeds=0", "--workdir=out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "error: --num_seeds=0: must be at least 1\n"
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


@dataclasses.dataclass(frozen=True)
class Config:
    """Every kind of field."""

    source: tuple[str, ...] = setting(help="Folders.", flag="from")
    text: str = setting(help="A text.")
    choice: str | None = setting(None, "One of two.", allowed=("a", "b"))
    count: int | None = setting(None, "A count.", check=at_least(2))
    numbers: tuple[int, ...] = setting((1, 2), "Numbers.")
    ratio: float = setting(0.5, "A ratio.")
    is_on: bool = setting(True, "A switch.")

    def check_together(self):
        """Forbid one pair of values."""
        if self.choice == "a" and self.count == 7:
            raise ValueError("--count=7: not with --choice=a")


def test_every_kind_of_field():
    parse_own = functools.partial(commands.parse, Config)
    given = parse_own("--from=x, y", "--text=t")
    assert given == Config(("x", "y"), "t", None, None, (1, 2), 0.5, True)
    line = [
        "--from=x",
        "--text=",
        "--choice=b",
        "--count=7",
        "--numbers=3",
        "--ratio=2",
        "--nois_on",
    ]
    given = parse_own(*line)
    assert given == Config(("x",), "", "b", 7, (3,), 2.0, False)
    assert [type(x) for x in (given.ratio, given.numbers[0])] == [float, int]
    for arguments, message in (
        (["--from=x"], "error: --text is required: A text."),
        (["--text=t", "--from=x", "--count=1"], "error: --count=1: must be at least 2"),
        (["--text=t", "--from=x", "--choice=c"], "<a|b>"),
        (["--text=t", "--from=x", "--numbers=1,2.5"], "--numbers=1,2.5: must be numbers"),
        (["--text=t", "--source=x"], "Unknown command line flag 'source'"),
        (["--text=t", "--choice=a", "--count=7"], "error: --count=7: not with --choice=a"),
    ):
        with pytest.raises(SystemExit) as stop:
            parse_own(*arguments)
        assert message in stop.value.code and "\n" not in stop.value.code


def test_a_norm_is_recorded_under_its_canonical_name():
    assert parse("--norms=fro,1/100.0") == parse("--norms=2.0,1/100")
    assert "--norms=2,1/100\n" in to_flagfile(parse("--norms=fro,1/100.0"))


def test_help_names_every_flag(tmp_path):
    command = [sys.executable, "-m", "experiments.default_init", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    for field in dataclasses.fields(SweepConfig):
        assert f"--{field.name}" in done.stdout or f"--[no]{field.name}" in done.stdout
    assert "default: 'runs/default_init'" in done.stdout


def test_the_commands_are_listed():
    done = subprocess.run(
        [sys.executable, "-m", "experiments"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    commands = list_commands()
    assert {"random_pretrain", "explain", "reproduce"} <= set(commands)
    assert not {"flags", "__main__"} & set(commands)
    assert all(summary.endswith((".", "?")) for summary in commands.values())
    assert all(summary in done.stdout for summary in commands.values())


def test_a_command_without_its_dot_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "nonsense"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: 'nonsense': the form is python -m experiments.COMMAND; ")
    assert done.stderr.endswith(f"; commands: {', '.join(list_commands())}\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(28, "Disk full", "x/y.csv"), "error: [Errno 28] Disk full: 'x/y.csv'"),
        (SettingsError("--epochs=0: no"), "error: --epochs=0: no"),
        (OutOfMemoryError("too\nmuch"), "error: too much"),
        (KeyboardInterrupt(), 130),
        (StoppedError(2, Path("run")), 130),
        (StoppedError(15, Path("run")), 143),
    ],
)
def test_what_ends_a_command(monkeypatch, capsys, error, code):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "x", "--workdir=a b"])

    def main(_):
        raise error

    with pytest.raises(SystemExit) as stop:
        flags.call(main, None)
    assert stop.value.code == code
    if isinstance(error, StoppedError):
        said = capsys.readouterr().err
        assert said.startswith("run: stopped by SIG")
        assert said.endswith("; continue with: python -m x '--workdir=a b' --resume\n")


def test_a_bug_keeps_its_traceback():
    def main(_):
        raise ValueError("shapes differ")

    with pytest.raises(ValueError, match="shapes differ"):
        flags.call(main, None)


def test_resuming_is_not_asked_for_twice(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "x", "--resume"])
    assert flags.resume_command() == "python -m x --resume"
