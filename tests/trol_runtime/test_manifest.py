"""manifest.json: what is written is read back; what does not fit is named."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from small_engine import small_manifest
from trol_runtime.errors import EngineFileError
from trol_runtime.manifest import FORMAT_VERSION, Hashes, Limits, Manifest, PlanEntry, TensorEntry
from trol_runtime.model_config import InternVitVision, Rope

# fmt: off
KEYS_OF_THE_FORMAT = [
    "format", "producer", "model", "precision", "limits", "tensors", "graphs",
    "plans", "prompt", "generation", "parity", "fp16_range", "sha256",
]
# fmt: on


def small_json() -> dict[str, Any]:
    return json.loads(small_manifest().to_bytes())


def read(values: Any) -> Manifest:
    return Manifest.from_bytes(json.dumps(values).encode())


def set_at(values: Any, path: str, value: Any) -> None:
    *parents, last = path.split("/")
    for key in parents:
        values = values[int(key) if isinstance(values, list) else key]
    values[int(last) if isinstance(values, list) else last] = value


def test_the_keys_are_those_of_the_file_format() -> None:
    assert sorted(small_json()) == sorted(KEYS_OF_THE_FORMAT)


def test_a_manifest_survives_writing_and_reading() -> None:
    manifest = replace(small_manifest(), sha256=Hashes({"a": "00"}, ("11", "22")))
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


def test_a_phi3_model_with_scaled_rope_and_no_prompt_survives_too() -> None:
    vision = InternVitVision(12, 20, 2, 3, 14, 6, 1e-6, norm_type="layer_norm", qkv_bias=True, qk_normalization=False)
    small = small_manifest()
    rope = Rope(1e4, "su", short_factor=(1.0, 1.5), long_factor=(2.0, 64.5), original_max_positions=4096)
    model = replace(small.model, arch="phi3", vision=vision, decoder=replace(small.model.decoder, rope=rope))
    manifest = replace(small, model=model, prompt=None)
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


def test_a_plan_of_another_target_survives_with_everything_it_was_built_for() -> None:
    plan = PlanEntry(
        target="tensorrt",
        key="10.16.2.10-sm8.7-fp16-00",
        roles=("decode",),
        precision="fp16",
        entries=("plans/tensorrt/10.16.2.10-sm8.7-fp16-00/decode.plan",),
        versions={"tensorrt": "10.16.2.10"},
        sm="8.7",
        gpu="NVIDIA Jetson AGX Orin Developer Kit",
        platform="linux-aarch64",
        limits=Limits(128, 5),
        weights="shared",
        mixer="function",
        opset="legacy",
        computes={"decode": {"attention": "fp16 2", "norms": "fp32 5"}},
        graphs="00",
        signature="11",
    )
    manifest = replace(small_manifest(), plans=(plan,))
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


def test_a_plan_of_an_unknown_form_is_an_error() -> None:
    values = small_json()
    values["plans"][0]["opset"] = "ancient"
    with pytest.raises(EngineFileError, match=r"'plans\[0\].opset' must be 'modern' or 'legacy', found 'ancient'"):
        read(values)


def test_a_plan_recorded_before_there_were_other_targets_is_read_without_what_it_lacks() -> None:
    values = small_json()
    plan = values["plans"][0]
    values["plans"] = [{key: plan[key] for key in ("target", "key", "roles", "precision", "entries", "versions", "sm")}]
    assert read(values) == small_manifest()


def test_equal_manifests_are_equal_bytes_whatever_the_order_of_keys() -> None:
    manifest = small_manifest()
    turned = replace(manifest, tensors=dict(reversed(manifest.tensors.items())))
    assert turned.to_bytes() == manifest.to_bytes()


@pytest.mark.parametrize("path", ["answer", "model/answer", "limits/answer", "tensors/head.weight/answer"])
def test_unknown_keys_are_tolerated(path: str) -> None:
    values = small_json()
    set_at(values, path, 42)
    assert read(values) == small_manifest()


@pytest.mark.parametrize("key", KEYS_OF_THE_FORMAT)
def test_each_missing_key_is_named(key: str) -> None:
    values = small_json()
    del values[key]
    with pytest.raises(EngineFileError, match=f"key '{key}' (is missing|must be 1 to 1, found None)"):
        read(values)


def test_a_key_missing_further_down_is_named_with_its_parents() -> None:
    values = small_json()
    del values["model"]["vision"]["grid"]
    with pytest.raises(EngineFileError, match=r"^manifest.json: key 'model.vision.grid' is missing; export the engine"):
        read(values)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("precision", "fp8", "key 'precision' must be 'fp32' or 'fp16', found 'fp8'"),
        ("limits", [], "key 'limits' must be an object, found []"),
        ("limits/max_seq", "4096", "key 'limits.max_seq' must be an integer, found '4096'"),
        ("limits/max_batch", True, "key 'limits.max_batch' must be an integer, found True"),
        ("tensors/head.weight/shape", 7, "key \"tensors['head.weight'].shape\" must be a list, found 7"),
        ("tensors/head.weight/shape/0", 1.5, "key \"tensors['head.weight'].shape[0]\" must be an integer, found 1.5"),
        ("graphs/prefill/inputs/0/shape/1", None, "must be an integer or a string, found None"),
        ("plans", {}, "key 'plans' must be a list, found {}"),
        ("plans/0/sm", 87, "key 'plans[0].sm' must be a string or null, found 87"),
        ("plans/0/limits", 128, "key 'plans[0].limits' must be Limits or null, found 128"),
        ("plans/0/computes", "fp16", "key 'plans[0].computes' must be an object, found 'fp16'"),
        ("model/arch", "llama", "key 'model.arch' must be 'internlm2' or 'phi3', found 'llama'"),
        ("model/vision/kind", "siglip", "key 'model.vision' must be ClipVision or InternVitVision"),
        ("model/decoder/rope/theta", "big", "key 'model.decoder.rope.theta' must be a number, found 'big'"),
        ("model/decoder/attention_bias", 1, "key 'model.decoder.attention_bias' must be a boolean, found 1"),
        ("prompt", "hello", "key 'prompt' must be PromptTemplate or null, found 'hello'"),
        ("prompt/turn_end", 7, "key 'prompt.turn_end' must be a string, found 7"),
        ("prompt/broken_utf8", "ignore", "key 'prompt.broken_utf8' must be 'byte' or 'run', found 'ignore'"),
        ("prompt/marks", ["<s>", 2], "key 'prompt.marks[1]' must be a string, found 2"),
        ("sha256/entries", {"a": 1}, "key \"sha256.entries['a']\" must be a string, found 1"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_what_was_expected(path: str, value: Any, message: str) -> None:
    values = small_json()
    set_at(values, path, value)
    with pytest.raises(EngineFileError) as caught:
        read(values)
    assert message in str(caught.value)
    assert str(caught.value).startswith("manifest.json: ")
    assert str(caught.value).endswith("; export the engine again")


def test_a_newer_format_is_refused_with_the_command_that_helps() -> None:
    values = {"format": FORMAT_VERSION + 1}
    with pytest.raises(EngineFileError) as caught:
        read(values)
    assert str(caught.value) == (
        "format 2 is newer than this version reads (up to 1); upgrade: pip install -U trol-export"
    )


@pytest.mark.parametrize("version", [0, -1, "1", 1.0, True, None])
def test_a_format_that_is_no_version_is_refused(version: Any) -> None:
    with pytest.raises(EngineFileError, match="key 'format' must be 1 to 1, found"):
        read({**small_json(), "format": version})


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b'{"format": 1', b"[" * 100_000, b"[1]", b'"text"', b'{"format": ' + b"9" * 5000]
)
def test_bytes_that_are_no_json_object_are_refused(data: bytes) -> None:
    with pytest.raises(EngineFileError, match=r"manifest.json (is not valid JSON|must hold an object)"):
        Manifest.from_bytes(data)


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", '"\\ud800"'])
def test_what_python_reads_beyond_json_is_refused(value: str) -> None:
    data = json.dumps({**small_json(), "parity": {"x": 1}}).replace('{"x": 1}', f'{{"x": {value}}}').encode()
    with pytest.raises(EngineFileError, match=r"manifest.json is not valid JSON") as caught:
        Manifest.from_bytes(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("levels", "accepted"), [(31, True), (32, False), (900, False)])
def test_lists_and_objects_may_be_nested_as_deep_as_any_record_goes(levels: int, accepted: bool) -> None:
    nested = "[" * levels + "1" + "]" * levels
    data = json.dumps({**small_json(), "parity": {"x": 1}}).replace('{"x": 1}', f'{{"x": {nested}}}').encode()
    # The manifest and the record are two levels more.
    if accepted:
        Manifest.from_bytes(data.replace(nested.encode(), nested[1:-1].encode()))
    else:
        with pytest.raises(EngineFileError, match="more than 32 levels of lists and objects"):
            Manifest.from_bytes(data)


def test_nan_is_no_json_and_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(small_manifest(), parity={"max_abs_diff": float("nan")}).to_bytes()


@pytest.mark.parametrize(
    ("stored", "shape", "nbytes"), [("F32", (3, 5), 60), ("F16", (7,), 14), ("U8", (4, 0), 0), ("F32", (), 4)]
)
def test_a_tensor_knows_its_bytes_in_the_arena(stored: str, shape: tuple[int, ...], nbytes: int) -> None:
    assert TensorEntry("F32", stored, shape, 0).nbytes == nbytes


def test_the_model_is_stored_under_the_names_of_its_dataclass() -> None:
    manifest = small_manifest()
    assert small_json()["model"]["decoder"]["rope"]["theta"] == 1e6
    assert set(small_json()["model"]) == set(asdict(manifest.model))
