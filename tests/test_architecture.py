"""The house of one-way arrows, read from the source: who may import whom, what imports late, who explains itself.

trol_export -> trol_graphs, trol_engines -> trol_runtime
trol_export -> trol_benchmarks -> trol_runtime
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = {
    "trol_export": REPOSITORY / "trol_export",
    "trol_graphs": REPOSITORY / "graphs" / "trol_graphs",
    "trol_engines": REPOSITORY / "engines" / "trol_engines",
    "trol_runtime": REPOSITORY / "runtime" / "trol_runtime",
    "trol_benchmarks": REPOSITORY / "benchmarks" / "trol_benchmarks",
}
# Each package and the others of the house it may import.
ARROWS = {
    "trol_export": {"trol_graphs", "trol_engines", "trol_runtime", "trol_benchmarks"},
    "trol_graphs": {"trol_runtime"},
    "trol_engines": {"trol_runtime"},
    "trol_benchmarks": {"trol_runtime"},
    "trol_runtime": set(),
}
# Of trol_export, what `--add-target` imports: with trol_engines and the runtime all that a JetPack 6 runs.
ADD_TARGET = {f"trol_export.{name}" for name in ("export_command_line", "needed", "progress")}
SINCE_PYTHON_3_11 = {
    *("tomllib", "wsgiref.types", "asyncio.TaskGroup", "asyncio.timeout", "contextlib.chdir", "datetime.UTC"),
    *("enum.StrEnum", "enum.verify", "hashlib.file_digest", "itertools.batched", "logging.getLevelNamesMapping"),
    *(f"typing.{name}" for name in ("Self", "Never", "LiteralString", "Required", "NotRequired", "Unpack", "override")),
    *(f"typing.{name}" for name in ("TypeVarTuple", "assert_never", "assert_type", "reveal_type", "get_overloads")),
}
# Base dependencies and the backends: all that a device has.
RUNTIME_MAY_IMPORT = {"numpy", "PIL", "tokenizers", "onnxruntime", "cuda"}

FILES = {
    ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): path
    for package, folder in PACKAGES.items()
    for path in sorted(folder.rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Full names of what `tree` imports anywhere, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in this house"
            assert node.module is not None
            yield node.module
            # `from package import module` imports the module; other names are no files and drop out below.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_at_once(tree: ast.Module) -> Iterator[str]:
    """What importing the module imports: not inside functions, not under TYPE_CHECKING."""
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from imported_modules(node)


def top_level(names: Iterator[str]) -> set[str]:
    return {name.split(".", 1)[0] for name in names}


@pytest.mark.parametrize("module", FILES)
def test_imports_follow_the_arrows(module: str) -> None:
    package = module.split(".", 1)[0]
    of_the_house = top_level(imported_modules(TREES[module])) & PACKAGES.keys()
    assert of_the_house <= ARROWS[package] | {package}


@pytest.mark.parametrize("module", [module for module in FILES if module.startswith("trol_runtime")])
def test_the_runtime_imports_nothing_that_a_device_lacks(module: str) -> None:
    foreign = top_level(imported_modules(TREES[module])) - sys.stdlib_module_names - {"trol_runtime"}
    assert foreign <= RUNTIME_MAY_IMPORT


@pytest.mark.parametrize(
    "module",
    [module for module in FILES if module.startswith(("trol_runtime", "trol_engines")) or module in ADD_TARGET],
)
def test_what_builds_and_runs_on_jetpack_6_is_written_for_python_3_10(module: str) -> None:
    ast.parse(FILES[module].read_text(encoding="utf-8"), feature_version=(3, 10))
    assert not set(imported_modules(TREES[module])) & SINCE_PYTHON_3_11


def test_adding_a_target_imports_no_more_of_the_exporter_than_is_written_for_python_3_10() -> None:
    command = TREES["trol_export.export_command_line"]
    added = [node for node in ast.walk(command) if isinstance(node, ast.FunctionDef) and "_add" in node.name]
    assert {node.name for node in added} == {"_add_target", "_added"}
    at_once = set(imported_at_once(command)) | {name for node in added for name in imported_modules(node)}
    assert {name for name in at_once & FILES.keys() if name.startswith("trol_export.")} <= ADD_TARGET


def test_no_module_imports_itself_in_a_circle() -> None:
    known = {module: set(imported_modules(tree)) & FILES.keys() - {module} for module, tree in TREES.items()}
    # CycleError names the circle. The package's lazy `TroL` is the one import that points back up.
    known["trol_runtime"].clear()
    TopologicalSorter(known).prepare()


@pytest.mark.parametrize("module", [module for module in FILES if module.endswith("_command_line")])
def test_a_command_imports_only_the_standard_library_before_it_has_parsed_its_arguments(module: str) -> None:
    pending, seen = [module], set()
    while pending:
        name = pending.pop()
        seen.add(name)
        if name in TREES:
            pending += [found for found in imported_at_once(TREES[name]) if found not in seen]
    foreign = top_level(iter(seen)) - sys.stdlib_module_names - PACKAGES.keys()
    assert foreign == set()


def test_importing_the_runtime_loads_nothing_else() -> None:
    program = "import sys, trol_runtime; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "PIL", "tokenizers", "onnxruntime", "torch"} & set(loaded)


@pytest.mark.parametrize("module", FILES)
def test_every_module_says_in_its_first_line_what_it_is_for(module: str) -> None:
    docstring = ast.get_docstring(TREES[module])
    assert docstring
    assert len(docstring.splitlines()[0]) > 20


def test_the_wheel_takes_every_package() -> None:
    pyproject = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    for folder in PACKAGES.values():
        assert f'"{folder.relative_to(REPOSITORY).as_posix()}"' in pyproject
