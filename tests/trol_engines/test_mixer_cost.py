"""The bytes that the mixer moves, and the page that weighs them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path

import pytest

from emitted_graphs import seeded_model
from trol_engines.mixer_cost import least_bytes, report
from trol_graphs.model import expected_tensors

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "mixer.md").read_text(encoding="utf-8")
TOKENS, FP16 = 1300, 2


def test_a_mixer_reads_two_rows_and_writes_one_and_reads_the_gate_once() -> None:
    first = second = mixed = 5 * 8
    weight, bias = 8, 1
    assert least_bytes(tokens=5, hidden=8, itemsize=2) == 2 * (first + second + mixed + weight + bias)


def layer_bytes(size: str) -> tuple[int, int]:
    """Hidden size, and bytes of one layer's weights in fp16."""
    config, _ = seeded_model(size.lower())
    of_layer = re.compile(r"(language_model\.)?model\.layers\.0\.")
    shapes = [shape for name, shape in expected_tensors(config).items() if of_layer.match(name)]
    return config.decoder.hidden_size, FP16 * sum(map(prod, shapes))


def weighed() -> Iterator[tuple[str, ...]]:
    """The columns of the page's last table, computed."""
    yield (
        "",
        "mixer, then norm",
        "both in one kernel",
        "saved per layer",
        "weights of the layer, read in both passes",
        "saved, of weights, mixer and norm together",
    )
    for size in ("1.8B", "3.8B", "7B"):
        hidden, weights = layer_bytes(size)
        rows, weight = TOKENS * hidden * FP16, hidden * FP16
        apart = least_bytes(TOKENS, hidden, FP16) + 2 * rows + weight
        together = least_bytes(TOKENS, hidden, FP16) + rows + weight
        saved = apart - together
        megabytes = [f"{count / 1e6:.1f} MB" for count in (apart, together, saved)]
        yield (size, *megabytes, f"{2 * weights / 1e6:.0f} MB", f"{100 * saved / (2 * weights + apart):.1f} %")


def test_the_page_weighs_the_norm_with_these_numbers() -> None:
    table = PAGE.split("## Why the next norm is not part of it")[1]
    rows = [tuple(cell.strip() for cell in row) for row in re.findall(r"^\|(.*)\|(.*)\|(.*)\|(.*)\|$", table, re.M)]
    heading, _, *counted = rows
    assert [heading, *counted] == list(zip(*weighed(), strict=True))


def test_the_page_shows_what_the_compiler_makes_of_the_kernel(tmp_path: Path) -> None:
    triton = pytest.importorskip("triton", reason="the mixer's kernel needs the extra plugin")
    if f"Triton {triton.__version__}" not in PAGE:
        pytest.skip(f"the page is of another Triton than {triton.__version__}")
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        assert report() in PAGE, "stale; run: python -m trol_engines.mixer_cost"
