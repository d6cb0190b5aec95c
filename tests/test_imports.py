"""The rules that the source itself shows: the order of imports, docstrings, file lengths."""

import ast
import functools
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import normjax

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("normjax/**/*.py"), *ROOT.glob("experiments/**/*.py")])

SECTIONS = "Args|Attributes|Example|Examples|Raises|Returns|Yields"

# From the outermost to the innermost; a room imports from its own line or from those below it.
ROOMS = (
    ("experiments",),
    ("sweep",),
    ("report", "plots"),
    ("controls", "generalization"),
    ("training",),
    ("networks", "data", "results", "statistics"),
    ("balance", "batch_norm", "losses", "torch"),
    ("normalize",),
    ("eager", "layers", "matrices", "rescaling", "tracing"),
    ("norms", "powers", "structure", "files", "formatting"),
    ("channel_vectors",),
    ("exponents",),
    ("types",),
)
RANKS = {name: rank for rank, names in enumerate(ROOMS) for name in names}


def module_name(path):
    """normjax/data/load.py -> normjax.data.load; a package by its own name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit(module):
    """The room of a module: a package or a core module of normjax, or `experiments`."""
    first, *rest = module.split(".")
    return rest[0] if first == "normjax" and rest else first


@functools.cache
def imports_of(path):
    """(module, whether at the top level) for each import; `from a import b` may be a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {module_name(p) for p in FILES}
    found = set()
    for node in ast.walk(tree):
        is_top = node in tree.body
        if isinstance(node, ast.Import):
            found |= {(alias.name, is_top) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            found |= {(name, is_top) for name in names or {node.module}}
    return found


def importers_of(*packages):
    """The units that import one of these packages."""
    return {
        unit(module_name(path))
        for path in FILES
        for name, _ in imports_of(path)
        if name.split(".")[0] in packages
    }


def test_every_module_has_its_place():
    units = {unit(module_name(path)) for path in FILES} - {"normjax"}
    assert units == set(RANKS), "a new room needs a line in ROOMS, a removed one none"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_run_one_way(path):
    importer = unit(module_name(path))
    if importer == "normjax":  # the façade loads names when they are first used
        assert {name for name, _ in imports_of(path)} == {"importlib", "typing"}
        return
    for name, _ in imports_of(path):
        if name.split(".")[0] in ("normjax", "experiments"):
            imported = unit(name)
            assert RANKS[imported] >= RANKS[importer], f"{importer} must not import {imported}"


def test_imports_have_no_circles():
    modules = {module_name(path): path for path in FILES}
    # A package's __init__ runs before its modules, which therefore do not count as importing it.
    graph = {
        name: {other for other, _ in imports_of(path) if other in modules and other != name}
        for name, path in modules.items()
    }
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == set(modules) and sum(map(len, graph.values())) > 40


def test_heavy_libraries_stay_in_their_rooms():
    assert importers_of("matplotlib") == {"plots"}
    assert importers_of("jinja2") == {"report"}
    tables = {"results", "training", "controls", "generalization", "report", "plots", "sweep"}
    assert importers_of("pandas") <= {*tables, "experiments"}
    assert importers_of("tensorflow_datasets") == {"data"}
    assert importers_of("absl") == {"experiments"}
    assert importers_of("orbax") == {"training"}
    assert importers_of("flax") == {"networks"}
    assert importers_of("tensorboardX") == {"results"}
    assert importers_of("torch", "tensorflow") == set()
    tops = {name for path in FILES for name, is_top in imports_of(path) if is_top}
    assert not [
        name
        for name in tops
        if name.split(".")[0] in ("tensorflow_datasets", "sklearn", "tensorboardX")
    ]
    assert "jax" in tops  # the walk does see imports


def loaded_after(code):
    """The modules a fresh interpreter has loaded after this code."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in done.stdout.split()}


def test_the_facade_loads_only_what_is_used():
    heavy = {"flax", "orbax", "matplotlib", "sklearn", "tensorflow_datasets", "absl", "optax"}
    assert not loaded_after("import normjax") & (heavy | {"scipy"})
    used = (
        "import normjax, numpy as np\n"
        "params = {'a': {'kernel': np.ones((2, 2), np.float32)}}\n"
        "assert float(normjax.normalize_params(params)['a']['kernel'][0, 0]) == 0.5\n"
        "normjax.cross_entropy(np.zeros((1, 2)), np.zeros(1, int))"
    )
    assert not loaded_after(used) & heavy


@pytest.mark.parametrize("name", [n for n in normjax.__all__ if n != "__version__"])
def test_every_public_name_resolves_and_is_documented(name):
    value = getattr(normjax, name)
    assert value.__name__ == name and value.__doc__ and len(value.__doc__) > 40
    assert name in dir(normjax)


def test_submodules_resolve_and_unknown_names_do_not():
    assert normjax.losses.cross_entropy is normjax.cross_entropy
    with pytest.raises(AttributeError, match="module 'normjax' has no attribute 'no_such_name'"):
        _ = normjax.no_such_name


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_public_things_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path} has no docstring"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    scopes = [tree, *[node for node in classes if not node.name.startswith("_")]]
    missing = [
        node.name
        for scope in scopes
        for node in scope.body
        if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not missing


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_docstrings_have_one_dialect(path):
    """Google style: sections indented by two spaces; an imperative first line, not "Returns"."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            continue
        text = ast.get_docstring(node) or ""
        sections = re.findall(rf"^({SECTIONS}):\n( *)\S", text, re.MULTILINE)
        assert {indent for _, indent in sections} <= {"  "}, text
        assert "``" not in text, text
        assert not re.match(r"(Args|Returns|Raises|Yields|Reads|Writes|Makes|Checks)\b", text), text


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
