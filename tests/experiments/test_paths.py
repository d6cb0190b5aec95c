"""Paths on the command line: ~ in every path flag, and flagfiles in every encoding of text."""

import dataclasses
import functools
import importlib
import os
import pwd
import typing

import pytest

from benchmarks import run as benchmark
from experiments import leaderboard
from experiments.__main__ import list_commands
from normjax.training import bucket
from normjax.training.config import SweepConfig, flag_name, setting
from tests.helpers import commands

# Flags of text that are no paths; every other one is.
TEXTS = {"model", "tied", "corruption", "norms", "norm", "selection", "distributed"}
TEXTS |= {"distribution", "figures", "scale", "conv", "matmul_precision"}


def config_classes():
    """{command: the class of its configuration}."""
    found = {name: importlib.import_module(f"experiments.{name}") for name in list_commands()}
    return {name: getattr(module, "Config", SweepConfig) for name, module in found.items()}


def is_text(kind):
    parts = (kind, *typing.get_args(kind))
    return str in parts or any(str in typing.get_args(part) for part in parts)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with a folder `some` of runs, which commands can start from."""
    (tmp_path / "some" / "runs").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("name", "config_class"), config_classes().items())
def test_a_tilde_is_expanded_in_every_path_flag(home, name, config_class):
    kinds = typing.get_type_hints(config_class)
    fields = [f for f in dataclasses.fields(config_class) if is_text(kinds[f.name])]
    paths = [field for field in fields if flag_name(field) not in TEXTS]
    assert {field.name for field in fields if field.metadata["is_path"]} == {f.name for f in paths}
    given = {flag_name(field): "~/some" for field in paths if flag_name(field) != "workdir"}
    given |= {"workdir": "~/out"} if "workdir" in {f.name for f in paths} else {}
    config = commands.parse(config_class, *[f"--{name}={path}" for name, path in given.items()])
    for field in paths:
        value = getattr(config, field.name)
        expected = given[flag_name(field)].replace("~", str(home))
        assert value == ((expected,) if isinstance(value, tuple) else expected)


def test_a_run_is_fetched_after_the_other_flags_are_checked(monkeypatch, tmp_path):
    fetched = []
    monkeypatch.setattr(bucket, "fetch_run", lambda address: fetched.append(address) or tmp_path)
    parse = functools.partial(commands.parse, leaderboard.Config, "--from=runs/a,s3://bucket/run")
    assert "--sharpness_images=0" in commands.error_of(parse, "--sharpness_images=0")
    assert fetched == []
    assert parse().source == ("runs/a", str(tmp_path))
    assert fetched == ["s3://bucket/run"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Paths of every kind."""

    workdir: str = setting("out", "A path.", is_path=True)
    source: tuple[str, ...] = setting((), "Several.", flag="from", is_path=True)
    dataset: str | None = setting(None, "A name or folder:PATH.", is_path=True)
    norm: str = setting("2", "No path.")


def test_a_tilde_means_what_it_means_to_a_shell(home):
    user = pwd.getpwuid(os.getuid())
    config = commands.parse(
        Config,
        f"--workdir=~{user.pw_name}/x",
        "--from=~,a/~,~/b c,~no_such_user/d,./~",
        "--dataset=folder:~/images",
        "--norm=~",
    )
    assert config.workdir == f"{user.pw_dir}/x"
    assert config.source == (str(home), "a/~", f"{home}/b c", "~no_such_user/d", "./~")
    assert config.dataset == f"folder:{home}/images"
    assert config.norm == "~"
    assert commands.parse(Config, "--dataset=cifar10").dataset == "cifar10"
    assert SweepConfig("~/run", dataset="folder:~").dataset == f"folder:{home}"


def test_benchmarks_too(home):
    (home / "folder").mkdir()
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["--out=~/folder"])
    assert stop.value.code == f"error: --out={home}/folder is a folder; a file is needed"


# --- flagfiles

LINES = "# größer\n\n--norm=é\r\n  --workdir=a b \n// no flag\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_flagfiles_are_utf_8_with_or_without_a_mark(tmp_path, monkeypatch, encoding):
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    (tmp_path / "inner").write_bytes(LINES.encode(encoding))
    (tmp_path / "outer").write_bytes(f"--flagfile={tmp_path / 'inner'}\n--norm=3".encode(encoding))
    for arguments in ([f"--flagfile={tmp_path / 'inner'}"], ["-flagfile", tmp_path / "inner"]):
        config = commands.parse(Config, "--workdir=before", *arguments)
        assert (config.norm, config.workdir) == ("é", "a b")
    config = commands.parse(Config, f"--flagfile={tmp_path / 'outer'}", "--workdir=after")
    assert (config.norm, config.workdir) == ("3", "after")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_flagfiles_of_another_encoding_are_named(tmp_path, encoding):
    path = tmp_path / "some.flags"
    path.write_bytes(LINES.encode(encoding))
    said = commands.error_of(commands.parse, Config, f"--flagfile={path}")
    assert said.startswith(f"error: {path}: not a UTF-8 text file (byte ")


def test_flagfiles_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "some.flags"
    path.write_text(f"--norm=2\n--flagfile={path}\n")
    for argument, message in (
        (f"--flagfile={path}", f"error: --flagfile={path}: it includes itself"),
        (f"--flagfile={tmp_path}", f"error: [Errno 21] Is a directory: '{tmp_path}'"),
        ("--flagfile", "error: --flagfile: a file is needed"),
    ):
        assert commands.error_of(commands.parse, Config, argument) == message
