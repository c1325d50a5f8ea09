"""The house rules that can be read off the source: who imports whom, and what no file may hold.

Nothing is imported here but in one subprocess: the files are parsed. Imports inside functions count like all others.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the ground up. A module may import its own package and every floor below, never a neighbour and never upwards.
FLOORS = (
    {"ember_ml.errors"},
    {"ember_ml.tensor"},
    {"ember_ml.kernels"},
    {"ember_ml.registry"},
    {"ember_ml.backend"},
    {"ember_ml.autodiff", "ember_mlx"},  # ember_mlx is an engine; the others are packages inside ember_ml.backend
    {"ember_ml.ops"},
    {"ember_ml.weights", "ember_ml.data"},
    {"ember_ml.nn"},
    {"ember_ml.interop", "ember_ml.parity", "ember_ml.sklearn"},
    {"ember_ml"},  # the public names, ember_ml/__init__.py
    {"ember_ml.cli", "ember_ml.__main__"},
)

ARRAY_LIBRARIES = {"numpy", "ml_dtypes", "torch", "mlx", "cupy", "cupyx", "scipy", "jax"}

# Who may import which of them; the longest name that fits a module holds. All others: none, they compute with ops.
MAY_COMPUTE_WITH = {
    "ember_ml.backend.numpy": {"numpy", "ml_dtypes"},
    "ember_ml.backend.cupy": {"numpy", "cupy", "cupyx"},
    "ember_ml.backend.torch": {"numpy", "ml_dtypes", "torch"},
    "ember_ml.backend.torch.cuda": {"torch", "cupy"},
    "ember_mlx": {"numpy", "ml_dtypes", "mlx"},
    "ember_ml.weights": {"numpy", "ml_dtypes"},
    "ember_ml.data": {"numpy"},
    "ember_ml.interop": {"numpy"},
    "ember_ml.parity": {"numpy"},
    "ember_ml.sklearn": {"numpy"},
    "ember_ml.nn.layers.sequence_mixing.recurrent.wirings": {"numpy"},
}

# Loaded by name, at first use: whoever imports one of these has decided for the user which library must be there.
ENGINES = ("ember_ml.backend.numpy", "ember_ml.backend.cupy", "ember_ml.backend.torch", "ember_mlx")

# They run code from the file that they read.
UNSAFE = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}

LONGEST_FILE = 400


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def longest_fit(module: str, names) -> str | None:
    return max((n for n in names if inside(module, n)), key=len, default=None)


def floor_of(module: str) -> tuple[int, str]:
    """(height, name of the floor's member) of an Ember module; the root package is a floor of its own."""
    members = {member: height for height, floor in enumerate(FLOORS) for member in floor}
    if module == "ember_ml":
        return members["ember_ml"], "ember_ml"
    member = longest_fit(module, members.keys() - {"ember_ml"})
    if member is None:
        raise LookupError(f"{module} stands on no floor; give it a place in FLOORS")
    return members[member], member


def module_name(path: Path) -> str:
    """ember_ml/ops/__init__.py -> ember_ml.ops, ember_ml/errors.py -> ember_ml.errors."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, package: str):
    """(line, full name) of everything imported anywhere in the file, also by import_module("name")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            # `from ember_ml import ops` imports the module ember_ml.ops, not the root package.
            for alias in node.names:
                full = f"{base}.{alias.name}"
                is_floor = any(inside(full, member) for floor in FLOORS for member in floor - {"ember_ml"})
                yield node.lineno, full if is_floor else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def import_faults(module: str, is_package: bool, text: str) -> list[str]:
    """What one file imports against the rules, a sentence each."""
    height, member = floor_of(module)
    computes_with = MAY_COMPUTE_WITH.get(longest_fit(module, MAY_COMPUTE_WITH), set())
    package = module if is_package else module.rpartition(".")[0]
    faults = []
    for line, name in imports(ast.parse(text), package):
        top = name.partition(".")[0]
        if top in ("ember_ml", "ember_mlx"):
            other_height, other = floor_of(name)
            if other != member and other_height >= height:
                faults.append(f"{module}:{line} imports {name}, which is not below it")
            elif longest_fit(name, ENGINES) and not longest_fit(module, ("ember_ml.backend", "ember_mlx")):
                faults.append(f"{module}:{line} imports {name}, an engine; reach it through ops or ember_ml.backend.get")
        elif top in ARRAY_LIBRARIES - computes_with:
            faults.append(f"{module}:{line} imports {name}; it may compute with {sorted(computes_with) or 'ops only'}")
        elif top in UNSAFE:
            faults.append(f"{module}:{line} imports {name}, which runs code from the file it reads")
    return faults


def text_faults(module: str, is_package: bool, text: str) -> list[str]:
    """What one file holds against the rules, imports apart."""
    tree = ast.parse(text)
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            faults.append(f"{module}:{node.lineno} prints; the library is silent, the command line has its console")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            faults.append(f"{module}:{node.lineno} catches everything; name the exception")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and getattr(node.value, "value", True):
            faults.append(f"{module}:{node.value.lineno} allows pickle, which runs code from the file it reads")
    lines = text.count("\n")
    if lines > LONGEST_FILE:
        faults.append(f"{module} has {lines} lines, more than {LONGEST_FILE}; which second concept can leave it?")
    if not is_package and all(forwards(statement) for statement in tree.body):
        faults.append(f"{module} only forwards names; that is the work of an __init__.py")
    return faults


def forwards(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring, an import or the list of public names."""
    if isinstance(statement, ast.Assign):
        return all(isinstance(target, ast.Name) and target.id == "__all__" for target in statement.targets)
    return isinstance(statement, (ast.Import, ast.ImportFrom)) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def library():
    """(module, is a package, text) of every file of the two packages."""
    files = sorted(path for top in ("ember_ml", "ember_mlx") for path in (ROOT / top).rglob("*.py"))
    for package in ("ember_ml", "ember_mlx"):
        assert ROOT / package / "__init__.py" in files, f"{package}/__init__.py is missing"
    return [(module_name(path), path.name == "__init__.py", path.read_text()) for path in files]


def test_imports_run_down_only():
    faults = [fault for file in library() for fault in import_faults(*file)]
    assert not faults, "\n" + "\n".join(faults)


def test_files_keep_the_house_rules():
    faults = [fault for file in library() for fault in text_faults(*file)]
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize("folder", ["metal", "cuda"])
def test_kernel_folders_hold_no_python(folder):
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert files, f"{folder}/ holds no kernel"
    # With an __init__.py, `import cupy` would find this `cuda` instead of NVIDIA's and fail.
    assert [str(path.relative_to(ROOT)) for path in files if path.suffix == ".py"] == []


def test_import_brings_no_engine():
    """A fresh `import ember_ml` loads none of the engines and nothing that belongs to an extra."""
    unwanted = "mlx torch cupy scipy matplotlib typer rich jinja2"
    code = f"import sys, ember_ml; sys.exit(' '.join(n for n in '{unwanted}'.split() if n in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"import ember_ml also imported: {done.stderr}"


@pytest.mark.parametrize(
    "module, text, fault",
    [
        ("ember_ml.nn.module", "import torch", "imports torch"),
        ("ember_ml.nn.module", "def f():\n    import numpy as np", ":2 imports numpy"),
        ("ember_ml.ops.math", "from mlx import core", "imports mlx"),
        ("ember_ml.backend.torch.base", "import cupy", "imports cupy"),
        ("ember_ml.backend.base", "import numpy", "imports numpy"),
        ("ember_ml.data.dna", "import importlib\nimportlib.import_module('torch')", "imports torch"),
        ("ember_ml.tensor.common.tensor", "from ember_ml.ops import exp", "imports ember_ml.ops"),
        ("ember_ml.autodiff.tape", "from ember_ml import ops", "imports ember_ml.ops"),
        ("ember_ml.autodiff.tape", "from ..nn import Module", "imports ember_ml.nn"),
        ("ember_ml.ops.math", "import ember_ml as em", "imports ember_ml,"),
        ("ember_ml.ops.math", "from ember_ml import value_and_grad", "imports ember_ml,"),
        ("ember_ml.weights", "from ember_ml.data import dna", "imports ember_ml.data"),
        ("ember_mlx.table", "from ember_ml.autodiff import vjp", "imports ember_ml.autodiff"),
        ("ember_ml.parity.row", "import ember_ml.cli", "imports ember_ml.cli"),
        ("ember_ml.nn.module", "def f():\n    import ember_mlx", "an engine"),
        ("ember_ml.parity.row", "from ember_ml.backend import torch", "an engine"),
        ("ember_ml.weights", "import pickle", "runs code"),
    ],
)
def test_a_forbidden_import_is_found(module, text, fault):
    (found,) = import_faults(module, False, text)
    assert fault in found


@pytest.mark.parametrize(
    "module, text",
    [
        ("ember_ml.nn.module", "from ember_ml import ops\nfrom ember_ml.nn.layers import hyena\nimport json"),
        ("ember_ml.backend.torch.cuda.launch", "import cupy, torch"),
        ("ember_ml.weights", "import numpy as np\nfrom ember_ml.errors import WeightsError"),
        ("ember_ml.cli.train", "import ember_ml as em"),
        ("ember_mlx.table", "import mlx.core as mx\nfrom ember_ml.backend.base import Base\nfrom . import shims"),
    ],
)
def test_an_allowed_import_passes(module, text):
    assert import_faults(module, False, text) == []


def test_a_module_without_a_floor_is_an_error():
    with pytest.raises(LookupError, match="ember_ml.attic stands on no floor"):
        import_faults("ember_ml.attic", False, "")


@pytest.mark.parametrize(
    "text, fault",
    [
        ("def f():\n    print(1)", ":2 prints"),
        ("try:\n    x = 1\nexcept:\n    x = 2", ":3 catches everything"),
        ("import numpy\nx = numpy.load('x', allow_pickle=True)", ":2 allows pickle"),
        ("x = 1\n" * (LONGEST_FILE + 1), "401 lines"),
        ('"""Names."""\nfrom ember_ml.ops import exp\n__all__ = ["exp"]', "only forwards"),
    ],
)
def test_a_broken_house_rule_is_found(text, fault):
    (found,) = text_faults("ember_ml.nn.module", False, text)
    assert fault in found
    assert text_faults("ember_ml.nn.module", False, "x = 1\n") == []
