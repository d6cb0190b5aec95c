"""What an installation puts on the import path."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import normjax

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of what setuptools reads, in a folder `normjax` as git clones it."""
    clone = tmp_path_factory.mktemp("parent") / "normjax"
    for folder in ("normjax", "experiments", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, clone / folder, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    return clone


def run(code, folder, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def build(kind, clone, folder):
    """The wheel that pip builds, without a network."""
    code = f"import sys; from setuptools import build_meta; build_meta.{kind}(sys.argv[1])"
    run(code, clone, folder)
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel)


def test_a_wheel_holds_the_library_with_its_data_and_nothing_else(clone, tmp_path):
    with build("build_wheel", clone, tmp_path) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        text = wheel.read(metadata).decode()
    assert f"\nVersion: {normjax.__version__}\n" in text
    for extra in ("torch", "docs", "tensorboard", "cuda12", "tpu", "gs", "s3"):
        assert f"\nProvides-Extra: {extra}\n" in text
    assert {name.split("/")[0] for name in names} == {"normjax", metadata.split("/")[0]}
    data = {
        path.relative_to(ROOT).as_posix() for path in ROOT.glob("normjax/**/*") if is_kept(path)
    }
    assert {name for name in names if name.startswith("normjax/")} == data
    assert "normjax/py.typed" in data


def test_the_changelog_begins_with_the_version_and_ci_runs_the_pythons_that_are_named():
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == normjax.__version__
    named = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.cfg").read_text())
    (matrix,) = re.findall(r"python: \[(.*)\]", (ROOT / ".github/workflows/ci.yml").read_text())
    assert named == [version.strip(' "') for version in matrix.split(",")]


def is_kept(path):
    return path.is_file() and path.suffix != ".pyc"


def test_an_editable_install_works_in_the_clones_parent_folder(clone, tmp_path):
    with build("build_editable", clone, tmp_path) as wheel:
        wheel.extractall(tmp_path / "site")
    # Another editable normjax on the path, such as this checkout's own, must not be found first.
    code = (
        "import os, site, sys; site.addsitedir(sys.argv[1]);"
        " other = [p for p in sys.path if os.path.exists(f'{p}/normjax/types.py')][:-1];"
        " sys.path[:] = [p for p in sys.path if p not in other];"
        " import normjax; print(normjax.__file__)"
    )
    (found,) = run(code, clone.parent, tmp_path / "site")
    assert Path(found) == clone / "normjax" / "__init__.py"
