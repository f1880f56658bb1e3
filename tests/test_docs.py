"""What the pages promise: every command can be typed, every link leads somewhere, output shown is what comes out."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from golden import seeded_checkpoint
from recorded_machines import recorded
from trol_benchmarks import bench_command_line
from trol_export import export_command_line
from trol_runtime import command, inspect_command_line, run_command_line
from trol_runtime.target_support import run_answers

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted(REPOSITORY.glob("*.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
    REPOSITORY / "benchmarks/README.md",
    REPOSITORY / "tests/golden/README.md",
]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PARSERS = {
    "trol-export": export_command_line._parse,
    "trol-run": run_command_line._parse,
    "trol-inspect": inspect_command_line._parse,
    "trol-bench": bench_command_line._parse,
}


# What pages have people type that is not this project's, and where that is written.
_JETPACK_SETUP = "https://docs.nvidia.com/jetson/orin-nano-devkit/user-guide/latest/setup_jetpack.html"
_VENV = "https://docs.python.org/3/library/venv.html"
SYSTEM_COMMANDS = {
    "sudo apt update": _JETPACK_SETUP,
    "sudo apt install nvidia-jetpack git python3-venv": _JETPACK_SETUP,
    "sudo apt install nvidia-driver-580 git python3-venv": "https://packages.ubuntu.com/noble-updates/nvidia-driver-580",
    "git clone REPOSITORY trol-export": "https://git-scm.com/docs/git-clone",
    "cd trol-export": "",
    "/usr/bin/python3 -m venv --system-site-packages .venv": _VENV,
    "python3 -m venv .venv": _VENV,
    ". .venv/bin/activate": _VENV,
    "scp tiny.plan engine.plan USER@BOARD:trol-export/": "https://man.openbsd.org/scp",
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def typed_commands() -> Iterator[tuple[str, str]]:
    """Name of the page and command, for every line of a console block that begins with a prompt."""
    for path in PAGES:
        for block in blocks(path.read_text(encoding="utf-8"), "console"):
            yield from ((path.name, line[2:]) for line in block.splitlines() if line.startswith("$ "))


COMMANDS = list(typed_commands())


@pytest.mark.parametrize(("page", "line"), [c for c in COMMANDS if c[1].startswith("trol-")])
def test_the_command_takes_the_arguments_that_the_page_gives_it(page: str, line: str) -> None:
    name, *arguments = shlex.split(line.split(" < ")[0])
    PARSERS[name](arguments)


@pytest.mark.parametrize(("page", "line"), [c for c in COMMANDS if c[1].startswith("make ")])
def test_make_has_the_target(page: str, line: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE)


@pytest.mark.parametrize(("page", "line"), [c for c in COMMANDS if c[1].startswith("pip ") and ".[" in c[1]])
def test_the_extras_of_an_install_command_exist(page: str, line: str) -> None:
    pyproject = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    # Of the clone one is in: nothing is published.
    requirement = re.fullmatch(r"pip install -c constraints\.txt '\.\[([\w,]+)\]'", line)
    assert requirement
    assert (REPOSITORY / "constraints.txt").is_file()
    for extra in requirement[1].split(","):
        assert re.search(rf"^{extra} = \[", pyproject, re.MULTILINE)


@pytest.mark.parametrize(("page", "line"), [c for c in COMMANDS if c[1].startswith("pip ") and ".[" not in c[1]])
def test_other_packages_are_installed_as_a_machine_with_a_driver_of_cuda_12_is_told(page: str, line: str) -> None:
    machine = recorded("rtx_4090")
    assert machine.nvidia is not None
    told = run_answers(replace(machine, nvidia=replace(machine.nvidia, cuda="12.8")))
    assert line in re.split(r"run: | && ", f"{told['cuda']} && {told['tensorrt-rtx']}")


@pytest.mark.parametrize(("page", "line"), [c for c in COMMANDS if c[1].startswith("python -m ")])
def test_the_module_takes_the_arguments_that_the_page_gives_it(page: str, line: str) -> None:
    _, _, module, *arguments = shlex.split(line)
    import_module(module)._parse(arguments)


@pytest.mark.parametrize(("page", "line"), [c for c in COMMANDS if c[1].startswith("python tests/")])
def test_the_command_that_makes_a_checkpoint_takes_its_arguments(
    monkeypatch: pytest.MonkeyPatch, page: str, line: str
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(seeded_checkpoint, "write_checkpoint", lambda *arguments: asked.append(arguments[:4]))
    _, program, name, directory, *options = shlex.split(line)
    assert (REPOSITORY / program).samefile(seeded_checkpoint.__file__)
    seeded_checkpoint.main([name, directory, *options])
    assert asked == [(seeded_checkpoint.CONFIGS[name], Path(directory), 0, options[options.index("--dtype") + 1])]


def test_every_command_line_on_a_page_is_one_that_is_checked() -> None:
    checked = re.compile(rf"({'|'.join(PARSERS)}|make|pip|python -m|python tests/\S+) ?")
    others = {line for _, line in COMMANDS if not checked.match(line)}
    assert others == set(SYSTEM_COMMANDS)


def test_the_help_page_is_current() -> None:
    writer = runpy.run_path(str(REPOSITORY / "docs" / "write_commands.py"))
    written = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
    # Python versions wrap lines differently.
    assert written.split() == writer["page"]().split(), "stale; run: python docs/write_commands.py"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_within_the_repository_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_every_cost_in_the_readme_stands_in_the_page_of_the_benchmarks() -> None:
    measured = (REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8")
    table = README.split("### What it costs")[1].split("\n## ")[0]
    costs = re.findall(r"(\d+\.\d+|\d+) (?:s|ms|GiB)\b", table)
    assert len(costs) == 10
    assert set(costs) <= set(re.findall(r"\d+\.\d+|\d+", measured))


def table(page: str, begin: str) -> dict[str, list[str]]:
    """The rows, by their first cell, of the table whose heading begins so."""
    lines = page.split(f"\n{begin} |")[1].split("\n\n")[0].splitlines()[2:]
    return {cells[0]: cells[1:] for cells in (line.strip("| ").split(" | ") for line in lines)}


def test_the_memory_on_the_jetson_page_is_counted_from_the_models() -> None:
    page = (REPOSITORY / "docs" / "jetson.md").read_text(encoding="utf-8")
    weights = {
        model: float(cells[1].removesuffix(" GB"))
        for model, cells in table(README, "| | parameters").items()
        if "B" in model
    }
    lengths, taken = (1536, 2048, 4096), {}
    for model, gigabytes in weights.items():
        llm = seeded_checkpoint.CONFIGS[model.lower()]["llm"]
        heads = llm["num_attention_heads"]
        width = llm["hidden_size"] // heads
        token = 2 * 2 * llm["num_hidden_layers"] * llm["num_key_value_heads"] * width  # keys and values in fp16
        taken[model] = [f"{gigabytes + token * length / 1e9:.1f} GB" for length in lengths]
        scores = table(page, "| scores")["1.8B" if model == "1.8B" else "3.8B and 7B"]
        assert scores == [f"{heads * length * 2 * length * 4 / 1e9:.2f} GB" for length in lengths]
    assert table(page, "| weights and cache") == taken
    for board, left in table(page, "| board").items():
        size = float(re.findall(r"(\d+) GB", board)[0])
        rest = [size - float(cells[1].removesuffix(" GB")) for cells in taken.values()]
        assert left == [f"{gigabytes:.1f} GB" if gigabytes > 0 else "does not fit" for gigabytes in rest]


def test_the_readme_knows_the_exit_codes() -> None:
    assert command.__doc__
    documented = set(re.findall(r"^\| (\d+) \|", README, re.MULTILINE))
    assert documented == set(re.findall(r"\b\d+\b", command.__doc__.split("Exit codes:")[1]))


def test_the_changelog_has_a_section_for_this_version() -> None:
    version = re.search(r'^version = "(.+)"', (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version
    assert f"\n## {version[1]} - " in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("snippet", blocks(README, "python"), ids=["text", "arrays"])
def test_the_readmes_python_runs(
    micro_engine: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    snippet: str,
) -> None:
    (tmp_path / "engine.plan").symlink_to(micro_engine("internlm2"))
    (tmp_path / "x.png").symlink_to(REPOSITORY / "examples" / "picture.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {})


def test_the_python_of_the_runtime_page_runs(
    micro_engine: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "engine.plan").symlink_to(micro_engine("internlm2"))
    (tmp_path / "x.png").symlink_to(REPOSITORY / "examples" / "picture.png")
    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs" / "runtime.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for snippet in blocks(page, "python"):
        exec(compile(snippet, "runtime.md", "exec"), names)
    assert 0 < names["answer"].reused_tokens < names["answer"].prompt_tokens
    assert re.search(r"^\d+ of \d+ tokens were read before$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("documented", "heading"),
    [
        ("trol_runtime.session:Session", "Sessions"),
        ("trol_runtime.chat:Chat", "Chat"),
        ("trol_runtime.generation_config:GenerationConfig", "How an answer is generated"),
        ("trol_runtime.engine:TroL", None),
    ],
)
def test_the_runtime_page_names_every_public_name(documented: str, heading: str | None) -> None:
    module, _, name = documented.partition(":")
    page = (REPOSITORY / "docs" / "runtime.md").read_text(encoding="utf-8")
    if heading is not None:
        page = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    kind = getattr(import_module(module), name)
    names = {name for name in (*vars(kind), *kind.__annotations__) if not name.startswith("_")}
    assert not {name for name in names if not re.search(rf"\b{name}\b", page)}
