"""Text goes to any terminal: what its encoding cannot express is escaped, and nothing is lost."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.paper import runs
from normjax.results.table import read_results
from normjax.training import processes

ROOT = Path(__file__).parents[2]
NAME = "Žluťoučký ρ 山"
COMMAND = r"""
import dataclasses, pathlib
from experiments import flags
from normjax.training.config import setting

@dataclasses.dataclass(frozen=True)
class Config:
    workdir: str = setting(help="A folder; \u03c1.")

def main(config):
    pathlib.Path(config.workdir).mkdir()
    print(f"{config.workdir}: \u221e")

flags.run(main, Config)
"""
TERMINALS = {  # the encoding of stdout, and the variables that lead to it
    "ascii": ("ascii", {"PYTHONIOENCODING": "ascii"}),
    "cp1252": ("cp1252", {"PYTHONIOENCODING": "cp1252:strict"}),
    "C": ("ascii", {"LC_ALL": "C", "PYTHONUTF8": "0"}),
    "C in UTF-8 mode": ("utf-8", {"LC_ALL": "C"}),
    "POSIX": ("utf-8", {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONIOENCODING": "utf-8"}),
}
SLOW = {"ascii", "C in UTF-8 mode", "POSIX"}


def run(command, terminal, folder):
    """The exit code and the bytes of stdout and stderr of a command in a terminal."""
    names = ("PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL", "LC_CTYPE", "LANG")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(ROOT), **TERMINALS[terminal][1]},
        capture_output=True,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "terminal",
    [pytest.param(key, marks=pytest.mark.slow) if key in SLOW else key for key in TERMINALS],
)
def test_a_command_says_what_it_did(tmp_path, terminal):
    code, out, error = run(["-c", COMMAND, f"--workdir={NAME}"], terminal, tmp_path)
    assert (code, error) == (0, b"")
    assert out == f"{NAME}: ∞\n".encode(TERMINALS[terminal][0], "backslashreplace")
    assert os.listdir(tmp_path) == [NAME]


@pytest.mark.slow
@pytest.mark.parametrize("terminal", ["ascii", "C"])
def test_help_and_errors_are_escaped(tmp_path, terminal):
    code, out, _ = run(["-c", COMMAND, "--help"], terminal, tmp_path)
    assert b"A folder; \\u03c1." in out
    code, out, error = run(["-c", COMMAND, f"--{NAME}"], terminal, tmp_path)
    assert (code, out) == (1, b"") and error.count(b"\n") == 1
    assert error.startswith(b"error: Unknown command line flag '\\u017dlu")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_the_library_escapes_too(monkeypatch, encoding):
    """`run_sweep` in a script of one's own; also names that are not Unicode."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    processes.say("runs/Łódź\udcff: 3 rows")
    expected = "runs/Łódź\udcff: 3 rows\n".encode(encoding, "backslashreplace")
    assert stream.buffer.getvalue() == expected


def test_what_a_run_of_the_reproduction_says_is_passed_on(capsys):
    """In whatever encoding it says it."""
    code = "import sys; sys.stderr.buffer.write(b'caf\\xe9 failed\\n'); sys.exit(1)"
    assert runs.train("some run", ["-c", code]) == "caf\\xe9 failed"
    assert "caf\\xe9 failed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_whole_run_in_a_plain_terminal(tmp_path):
    command = [
        *("-m", "experiments.random_pretrain", "--model=linear", "--train_size=40"),
        *("--test_size=20", "--batch_size=20", "--pretrain_epochs=1", "--epochs=2"),
        *("--corruption_levels=0,1", "--norms=2", f"--workdir={NAME}"),
    ]
    code, out, error = run(command, "C", tmp_path)
    assert code == 0, error
    assert out.startswith(NAME.encode("ascii", "backslashreplace") + b"/results.csv: 2 rows")
    assert len(read_results(tmp_path / NAME)) == 2
    flags = (tmp_path / NAME / "flags.txt").read_text(encoding="utf-8")
    assert f"--workdir={NAME}\n" in flags and os.listdir(tmp_path) == [NAME]
    code, out, error = run([*command, "--resume"], "cp1252", tmp_path)
    assert (code, error) == (0, b"") and out.endswith(b": this run is finished; nothing to do\n")
