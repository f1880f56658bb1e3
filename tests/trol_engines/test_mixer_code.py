"""The mixer's kernel compiled for every GPU without having one, and what the PTX that a plan holds looks like."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trol_engines import mixer_code
from trol_engines.mixer_code import PTX, TYPES, Cuda, MixerCode, MixerType, compile_mixer, require_loadable
from trol_engines.mixer_cost import resources
from trol_runtime.errors import MissingExtraError, TrolError

triton = pytest.importorskip("triton", reason="the mixer's kernel needs the extra plugin")

RELEASED = (2048, 3072, 4096)  # hidden sizes of 1.8B, 3.8B and 7B
ITEMSIZE: dict[MixerType, int] = {"fp16": 2, "bf16": 2, "fp32": 4}
EVERY_GPU = [(sm, "fp16", hidden) for sm in PTX for hidden in RELEASED]
EVERY_TYPE = [(sm, dtype, hidden) for sm in (87, 89, 110) for dtype in ("bf16", "fp32") for hidden in RELEASED]
COMPILED = pytest.mark.parametrize(("sm", "dtype", "hidden"), [*EVERY_GPU, *EVERY_TYPE])


@pytest.fixture(scope="module", autouse=True)
def triton_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Triton keeps what it compiled, and not among the user's files."""
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
        yield


def test_it_is_compiled_for_every_gpu_that_is_asked_for() -> None:
    assert sorted(PTX) == [80, 86, 87, 89, 90, 100, 110, 120]


@COMPILED
def test_nothing_is_spilled_and_an_sm_holds_a_thousand_threads(sm: int, dtype: MixerType, hidden: int) -> None:
    code = compile_mixer(sm, dtype, hidden)
    taken = resources(code)
    assert taken.spilled_bytes == 0
    assert taken.registers <= 64  # of the 65,536 that an SM has
    assert code.shared_bytes == 4 * code.threads // 32  # one sum per warp


@COMPILED
def test_rows_are_read_and_written_128_bits_at_a_time(sm: int, dtype: MixerType, hidden: int) -> None:
    accesses = resources(compile_mixer(sm, dtype, hidden)).access_bytes
    itemsize = ITEMSIZE[dtype]
    bias = [width for width in accesses if width != 16]
    assert bias == [itemsize]
    # Both passes, the weight and the result; the compiler orders them as it likes.
    assert (len(accesses) - 1) % 4 == 0


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("hidden", [2048, 4096])
def test_every_element_is_asked_for_once(dtype: MixerType, hidden: int) -> None:
    """Of a width that leaves no thread idle: there, what a block asks for is what its threads ask for."""
    code = compile_mixer(87, dtype, hidden)
    asked = code.threads * sum(width for width in resources(code).access_bytes if width == 16)
    row = hidden * ITEMSIZE[dtype]
    assert asked == 4 * row  # first, second and mixed, and the weight, which every block finds in the cache


@COMPILED
def test_it_has_the_parameters_that_tensorrt_passes_and_no_more(sm: int, dtype: MixerType, hidden: int) -> None:
    code = compile_mixer(sm, dtype, hidden)
    entry = re.search(rf"\.visible \.entry {code.name}\((.*?)\)\n\.reqntid {code.threads}\n", code.ptx, re.DOTALL)
    assert entry
    assert re.findall(r"\.param \.(\w+)", entry[1]) == ["u64"] * 5
    assert set(re.findall(r"ld\.param\S*\s+\S+ \[(\w+)\]", code.ptx)) == {f"{code.name}_param_{n}" for n in range(5)}


@pytest.mark.parametrize("sm", PTX)
def test_it_names_the_gpu_and_its_ptx_version(sm: int) -> None:
    ptx = compile_mixer(sm, "fp16", 2048).ptx
    assert f"{version_line(PTX[sm].version)}\n.target sm_{sm}{'a' if sm >= 90 else ''}\n" in ptx


def version_line(version: int) -> str:
    return f".version {version // 10}.{version % 10}"


@pytest.mark.parametrize(("dtype", "rounded"), [("fp16", "cvt.rn.f16x2.f32"), ("bf16", "cvt.rn.bf16x2.f32")])
def test_it_computes_in_fp32_and_rounds_the_result_to_nearest(dtype: MixerType, rounded: str) -> None:
    ptx = compile_mixer(87, dtype, 2048).ptx
    narrow = "f16" if dtype == "fp16" else "bf16"
    assert set(re.findall(r"\bcvt\.\S+", ptx)) == {f"cvt.f32.{narrow}", rounded}
    arithmetic = re.findall(r"\b(?:add|sub|mul|fma|div|ex2)(?:\.\w+)*\.(\w+)\s", ptx)
    assert set(arithmetic) - {"u32", "s32", "s64", "u64", "b64"} == {"f32"}


@pytest.mark.parametrize("hidden", [1, 65, 100, 500])
def test_other_widths_are_compiled_too(hidden: int) -> None:
    code = compile_mixer(87, "fp16", hidden)
    assert resources(code).spilled_bytes == 0
    assert code.threads == 32


def test_a_plan_learns_nothing_about_the_machine_it_was_built_on() -> None:
    ptx = compile_mixer(87, "fp16", 2048).ptx
    assert str(Path(mixer_code.__file__).parent) not in ptx
    assert ".loc" not in ptx


# The newest PTX that the driver of a CUDA release loads: PTX ISA, "Release History".
NEWEST_PTX: dict[Cuda, int] = {(12, 0): 80, (12, 6): 85, (12, 8): 87, (13, 0): 90}


@pytest.mark.parametrize(
    ("sm", "cuda"),
    [
        pytest.param(87, (12, 6), id="Orin with JetPack 6.2"),
        pytest.param(87, (13, 0), id="Orin with JetPack 7"),
        pytest.param(110, (13, 0), id="Thor with JetPack 7"),
        pytest.param(89, (12, 0), id="RTX 40 with the first driver of CUDA 12"),
        pytest.param(100, (12, 8), id="B200 with the first driver that knows it"),
        pytest.param(120, (12, 8), id="RTX 50 with the first driver that knows it"),
    ],
)
def test_the_driver_of_the_device_loads_it(sm: int, cuda: Cuda) -> None:
    require_loadable(sm, cuda)
    said = re.search(r"^\.version (\d+)\.(\d)$", compile_mixer(sm, "fp16", 2048).ptx, re.MULTILINE)
    assert said
    assert 10 * int(said[1]) + int(said[2]) <= NEWEST_PTX[cuda]


@pytest.mark.parametrize(
    ("sm", "cuda", "message"),
    [
        (
            110,
            (12, 6),
            "the driver's CUDA is 12.6; on SM 11.0 the mixer plugin needs 13.0 or newer: update the driver",
        ),
        (87, (11, 4), "the driver's CUDA is 11.4; on SM 8.7 the mixer plugin needs 12.0 or newer: update the driver"),
        (
            75,
            (13, 0),
            "the mixer plugin does not exist for SM 7.5, expected one of 8.0, 8.6, 8.7, 8.9, 9.0, 10.0, 11.0, 12.0",
        ),
    ],
)
def test_what_cannot_load_it_is_one_line(sm: int, cuda: Cuda, message: str) -> None:
    with pytest.raises(TrolError) as refused:
        require_loadable(sm, cuda)
    assert str(refused.value) == message


@pytest.mark.parametrize(("sm", "older"), [(90, 78), (100, 85), (110, 88), (120, 86)])
def test_there_is_no_older_ptx_that_knows_the_gpu(sm: int, older: int) -> None:
    code = compile_mixer(sm, "fp16", 2048)
    ptx = code.ptx.replace(version_line(PTX[sm].version), version_line(older))
    with pytest.raises(RuntimeError, match=rf"PTX \.version {older / 10} does not support \.target sm_{sm}a"):
        resources(MixerCode(sm, code.name, ptx, code.threads, code.shared_bytes))


def test_without_triton_it_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingExtraError) as refused:
        compile_mixer(87, "fp16", 128)
    assert str(refused.value) == (
        "the mixer plugin needs triton, not installed here; install with: pip install 'trol-export[plugin]'"
    )
