"""The parity record: what it measures, what it lets pass, and that a single wrong weight does not get past it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trol_export import parity_check
from trol_export.checkpoint import Checkpoint
from trol_export.parity import BUDGETS, DECODE_STEPS, Budget, ParityReport, make_probe
from trol_export.parity_check import check_parity
from trol_export.pipeline import LEAST_MAX_SEQ
from trol_runtime.bundle import Bundle
from trol_runtime.manifest import Limits

ARCHS = ["internlm2", "phi3"]


@pytest.fixture(params=["whole", "by part"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of comparing: the small models of these tests are taken for large ones in the second."""
    if request.param == "by part":
        monkeypatch.setattr(parity_check, "WHOLE_MODEL_BYTES", 0)
    return request.param


# --- the record ---------------------------------------------------------------------------------------------------


def report_of(engine: list[float], eager: list[float], budget: Budget = BUDGETS["fp32"]) -> ParityReport:
    report = ParityReport(budget, "two arrays")
    report.compare("logits", np.array(engine, np.float32), np.array(eager, np.float32))
    return report


def test_the_limit_is_relative_to_the_largest_reference_value() -> None:
    (row,) = report_of([1, -200], [1, -200]).comparisons
    assert (row.max_abs_diff, row.limit, row.cosine) == (0, 200 * 1e-4, 1)


@pytest.mark.parametrize(
    ("engine", "eager", "passed"),
    [
        pytest.param([1.0, 2.0], [1.0, 2.0], True, id="equal"),
        pytest.param([1.0, 2.0001], [1.0, 2.0], True, id="within the limit"),
        pytest.param([1.0, 2.0003], [1.0, 2.0], False, id="beyond the limit"),
        pytest.param([0.0, 0.0], [0.0, 0.0], True, id="both zero"),
        pytest.param([0.0, 1e-30], [0.0, 0.0], False, id="zero in the reference alone"),
        pytest.param([np.nan, 2.0], [1.0, 2.0], False, id="NaN in the engine"),
        pytest.param([1.0, 2.0], [np.nan, 2.0], False, id="NaN in the reference"),
        pytest.param([np.inf, 2.0], [np.inf, 2.0], False, id="infinite on both sides"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_an_output_passes_only_within_its_limits(engine: list[float], eager: list[float], passed: bool) -> None:
    report = report_of(engine, eager)
    assert report.passed is passed
    json.loads(json.dumps(report.parity_json(), allow_nan=False))


def test_a_small_difference_everywhere_fails_by_the_cosine() -> None:
    eager = np.ones(1000)
    eager[0] = 100
    engine = eager + np.where(np.arange(1000) % 2, 0.9, -0.9)
    report = report_of(engine.tolist(), eager.tolist(), Budget(relative=1e-2, cosine=0.9999))
    (row,) = report.comparisons
    assert row.max_abs_diff <= row.limit
    assert not report.passed


def test_the_verdict_counts_failures_and_names_the_worst() -> None:
    report = report_of([1, 2], [1, 2])
    assert report.verdict() == "parity: all 1 outputs within their limits"
    report.compare("a", np.array([1.0, 2.1]), np.array([1.0, 2.0]))
    report.compare("b", np.array([1.0, 9.0]), np.array([1.0, 2.0]))
    assert report.verdict() == (
        "parity failed for 2 of 3 outputs: b differs by 7 (limit 0.0002), cosine 0.938343 (at least 0.999999)"
    )
    assert [row["verdict"] for row in report.parity_json()["outputs"]] == ["pass", "FAIL", "FAIL"]


def test_ranges_hold_the_largest_value_into_or_out_of_any_submodule() -> None:
    report = ParityReport(BUDGETS["fp32"], "")
    part = torch.nn.Sequential(torch.nn.Hardtanh(-300, 300), torch.nn.Hardtanh(-2, 2))
    with report.record_ranges({"part": part}):
        part(torch.tensor([-1000.0]))
        part(torch.tensor([7.0]))
    part(torch.tensor([2900.0]))
    assert report.ranges == {"part": 1000.0}


def test_a_product_that_overflows_between_two_modules_is_seen() -> None:
    class GatedMLP(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.down = (torch.nn.Hardtanh(-300, 300) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(self.gate(x) * self.up(x))

    report = ParityReport(BUDGETS["fp16"], "")
    mlp = GatedMLP()
    with report.record_ranges({"mlp": mlp}):
        mlp(torch.tensor([300.0]))
    assert report.ranges == {"mlp": 90_000.0}
    assert report.overflowing() == ["mlp"]


def test_nan_activations_do_not_fit() -> None:
    report = ParityReport(BUDGETS["fp16"], "")
    part = torch.nn.Identity()
    with report.record_ranges({"part": part}):
        part(torch.tensor([1.0, float("nan")]))
        part(torch.tensor([2.0]))
    assert report.overflowing() == ["part"]


@pytest.mark.parametrize(
    ("largest", "verdict"),
    [(65503.0, "fits"), (65504.0, "overflows in layers.3"), (float("nan"), "overflows in layers.3")],
)
def test_activations_that_fp16_cannot_hold_are_named(largest: float, verdict: str) -> None:
    report = ParityReport(BUDGETS["fp32"], "", ranges={"vision": 3.0, "layers.3": largest})
    assert report.fp16_range_json()["verdict"] == verdict
    json.dumps(report.fp16_range_json(), allow_nan=False)


@pytest.mark.parametrize("max_seq", [LEAST_MAX_SEQ, 9, 40, 4096])
@pytest.mark.parametrize("arch", ARCHS)
def test_the_probe_fits_the_engine(micro_engine: Callable[..., Path], arch: str, max_seq: int) -> None:
    config = Bundle.open(micro_engine(arch)).manifest.model
    probe = make_probe(config, Limits(max_seq, 1))
    assert len(probe.ids) + DECODE_STEPS <= max_seq
    assert (probe.ids == config.image_token_id).sum() == probe.image_tokens
    assert 0 < probe.image_tokens <= config.vision.tokens_per_crop
    assert (probe.text_ids != config.image_token_id).all()
    assert len(probe.text_ids) > 1  # a single token would skip the second pass


# --- on engines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("arch", ARCHS)
def test_a_right_engine_passes(
    micro_engine: Callable[..., Path], micro_checkpoint: Callable[..., Path], arch: str, precision: str, way: str
) -> None:
    bundle, checkpoint = Bundle.open(micro_engine(arch, precision)), Checkpoint.open(micro_checkpoint(arch))
    report = check_parity(bundle, checkpoint)
    assert report.passed, report.verdict()
    outputs = {row.output for row in report.comparisons}
    if way == "whole":
        assert report.scope == "the whole model, through the runtime"
        assert {
            "image_embeds",
            "text: prefill logits",
            "picture: prefill logits",
            "picture: extend logits",
            "picture: decode 3 logits",
        } <= outputs
    else:
        assert report.scope == "vision, embedding, layers 0, 1 of 2, head"
        layer = {f"layers.1.{value}" for value in ("first_pass", "second_pass", "output")}
        assert {"image_embeds", "embedding: inputs_embeds", "prefill: present.0.key"} <= outputs
        assert {"prefill head: logits", "decode head: logits", "extend head: logits"} <= outputs
        assert {f"{role}: {value}" for value in layer for role in ("prefill", "extend")} <= outputs
        assert {"extend: present.1.key", "extend: present_second_pass.0.value"} <= outputs
        assert {"decode: layers.0.output", "decode: layers.1.output", "decode: present.1.value"} <= outputs
    assert {"layers.0", "layers.1"} <= report.ranges.keys()


FAULTS = {
    "internlm2": [
        "vit.vision_tower.vision_model.encoder.layers.1.mlp.fc2.weight",
        "vision_proj.2.bias",
        "model.tok_embeddings.weight",
        "model.layers.0.attention.wqkv.lora_B.weight",
        "model.layers.1.feed_forward.w2.ffn.weight",
        "trol_gating.weight",
        "model.norm.weight",
        "output.weight",
    ],
    "phi3": [
        "vision_model.encoder.layers.0.ls1",
        "vision_proj.0.weight",
        "language_model.model.layers.1.self_attn.qkv_proj.weight",
        "language_model.model.layers.0.input_layernorm.weight",
        "trol_gating.bias",
        "language_model.lm_head.weight",
    ],
}


@pytest.mark.parametrize(("arch", "tensor"), [(arch, tensor) for arch, names in FAULTS.items() for tensor in names])
def test_one_wrong_tensor_is_caught(
    micro_engine: Callable[..., Path],
    micro_checkpoint: Callable[..., Path],
    tmp_path: Path,
    arch: str,
    tensor: str,
    way: str,
) -> None:
    engine = Path(shutil.copy(micro_engine(arch, "fp16"), tmp_path / "engine.plan"))
    negate(engine, tensor)
    report = check_parity(Bundle.open(engine), Checkpoint.open(micro_checkpoint(arch)))
    assert not report.passed
    assert "parity failed for " in report.verdict()


def negate(engine: Path, tensor: str) -> None:
    """Flip the sign of a tensor in the file, of which only `--verify` would take notice."""
    bundle = Bundle.open(engine)
    entry = bundle.manifest.tensors[tensor]
    with engine.open("r+b") as file:
        file.seek(bundle.arena_offset + entry.offset)
        values = np.frombuffer(file.read(entry.nbytes), np.float16)
        file.seek(bundle.arena_offset + entry.offset)
        file.write((-values).tobytes())


def test_by_part_a_wrong_layer_fails_alone(
    micro_engine: Callable[..., Path],
    micro_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parity_check, "WHOLE_MODEL_BYTES", 0)
    engine = Path(shutil.copy(micro_engine("internlm2"), tmp_path / "engine.plan"))
    negate(engine, "model.layers.1.feed_forward.w1.ffn.weight")
    report = check_parity(Bundle.open(engine), Checkpoint.open(micro_checkpoint("internlm2")))
    failed = {row.output for row in report.comparisons if not row.passed}
    assert failed == {
        "prefill: layers.1.first_pass",
        "prefill: layers.1.second_pass",
        "prefill: layers.1.output",
        "decode: layers.1.output",
        "extend: layers.1.first_pass",
        "extend: layers.1.second_pass",
        "extend: layers.1.output",
        "extend: present_second_pass.1.key",
        "extend: present_second_pass.1.value",
    }


def test_an_engine_whose_activations_leave_fp16_says_in_which_part(
    trol_export: Callable[..., Any], micro: Path, tmp_path: Path
) -> None:
    path = micro / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.feed_forward.w2.ffn.weight"] *= 1e5
    save_file(tensors, path, metadata={"format": "pt"})
    engine = tmp_path / "engine.plan"
    ended = trol_export("--checkpoint", micro, "--precision", "fp32", "-o", engine)
    assert ended.code == 0, ended.stderr
    assert "activations against fp16's range: overflows in layers.1" in ended.stdout
    record = Bundle.open(engine).manifest.fp16_range
    largest = {row["part"]: row["max_abs"] for row in record["activations"]}
    assert largest["layers.1"] > record["fp16_max"] == 65504 > largest["layers.0"]
