"""Headers and bytes of one weight file: what is read, and how a damaged or hostile file is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trol_export.weight_files import SafetensorsFile, TensorInfo, TorchFile
from trol_runtime.errors import CheckpointError


def write_raw(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with this header, bytes taken as they are; `length` replaces the announced header length."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(encoded) if length is None else length).to_bytes(8, "little") + encoded + data)
    return path


def entry(begin: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize("kind", [SafetensorsFile, TorchFile])
def test_headers_and_bytes_are_those_the_library_wrote(
    tmp_path: Path, kind: type[SafetensorsFile] | type[TorchFile]
) -> None:
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4, dtype=torch.float16),
    }
    path = tmp_path / ("w.safetensors" if kind is SafetensorsFile else "w.bin")
    save_file(tensors, path) if kind is SafetensorsFile else torch.save(tensors, path)
    file = kind(path)
    assert file.tensors == {
        "a": TensorInfo("a", "F32", (2, 3)),
        "b": TensorInfo("b", "BF16", (2,)),
        "empty": TensorInfo("empty", "F16", (0, 4)),
    }
    for name, tensor in tensors.items():
        chunks = list(file.chunks(name, limit=8))
        assert all(chunk.size <= 8 for chunk in chunks)
        stored = np.concatenate([*chunks, np.empty(0, np.uint8)]).tobytes()
        assert stored == tensor.view(torch.uint8).numpy().tobytes()


def test_a_transposed_tensor_of_a_torch_file_comes_row_major(tmp_path: Path) -> None:
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3).t()
    torch.save({"a": tensor}, tmp_path / "w.bin")
    (chunk,) = TorchFile(tmp_path / "w.bin").chunks("a", limit=64)
    assert chunk.tobytes() == tensor.contiguous().numpy().tobytes()


def test_a_torch_file_from_before_the_zip_format_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "w.bin", _use_new_zipfile_serialization=False)
    assert TorchFile(tmp_path / "w.bin").tensors == {"a": TensorInfo("a", "F32", (3,))}


DAMAGED_SAFETENSORS = [
    pytest.param(
        {"header": b"", "length": 2**60}, "its first eight announce a header of 1152921504606846976", id="absurd"
    ),
    pytest.param({"header": b"{" * 64}, "its header is not JSON", id="not JSON"),
    pytest.param({"header": b"[" * 200_000}, "its header is not JSON", id="deeply nested"),
    pytest.param({"header": b"\xff\xfe{}"}, "its header is not JSON", id="not UTF-8"),
    pytest.param({"header": [1]}, "its header is not a JSON object", id="not an object"),
    pytest.param({"header": b'{"a": 1, "a": 2}'}, "a name occurs twice", id="duplicate name"),
    pytest.param({"header": {"a": {}}}, "the entry of 'a' lacks dtype, shape or data_offsets", id="no fields"),
    pytest.param({"header": {"a": 7}}, "the entry of 'a' lacks dtype, shape or data_offsets", id="no entry"),
    pytest.param({"header": {"a": entry(0, 8, dtype="F31")}}, "'a' has the unknown dtype 'F31'", id="dtype"),
    pytest.param(
        {"header": {"a": entry(0, 8, shape=(-2,))}}, "[-2] and data_offsets [0, 8]: not counts", id="negative"
    ),
    pytest.param({"header": {"a": entry(0, 4)}}, "'a' spans 4 bytes, its shape (2,) in F32 needs 8", id="span"),
    pytest.param(
        {"header": {"a": entry(0, 8), "b": entry(4, 12)}, "data": bytes(12)},
        "'b' begins at byte 4, the tensor before it ends at 8",
        id="overlap",
    ),
    pytest.param(
        {"header": {"a": entry(0, 8), "b": entry(12, 20)}, "data": bytes(20)},
        "'b' begins at byte 12, the tensor before it ends at 8",
        id="hole",
    ),
    pytest.param({"header": {"a": entry(0, 8)}, "data": bytes(5)}, "is truncated: it has", id="truncated"),
    pytest.param({"header": {"a": entry(0, 8)}, "data": bytes(9)}, "is too long: it has", id="too long"),
    pytest.param(
        {"header": {"a": entry(0, 2**62, shape=(2**60,))}, "data": bytes(9)}, "is truncated: it has", id="out of range"
    ),
    pytest.param(
        {"header": {"a": entry(0, 0, shape=(2**62, 2**62, 0))}}, "more bytes than 64 bits can count", id="overflow"
    ),
    pytest.param({"header": {"a": {**entry(0, 8), "dtype": ["F32"]}}}, "'a' has the unknown dtype ['F32']", id="type"),
    pytest.param({"header": {"__metadata__": {"n": 1}}}, "its __metadata__ is not an object of texts", id="metadata"),
    pytest.param({"header": b'{"__metadata__": {"n": NaN}}'}, "its header is not JSON: it has a NaN", id="NaN"),
    pytest.param({"header": {"half \ud800": entry(0, 0)}}, "its header holds halves of characters", id="surrogate"),
    pytest.param({"header": {"x" * 10_000: 7}}, "xxx' lacks dtype, shape or data_offsets", id="long name"),
    pytest.param({"header": {"\x1b[2J": 7}}, "the entry of '\\x1b[2J' lacks dtype", id="control character"),
]


@pytest.mark.parametrize(("file", "message"), DAMAGED_SAFETENSORS)
def test_a_damaged_safetensors_file_is_refused_in_one_line_that_names_it(
    tmp_path: Path, file: dict[str, Any], message: str
) -> None:
    path = write_raw(tmp_path / "model.safetensors", **file)
    with pytest.raises(CheckpointError) as error:
        SafetensorsFile(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000
    assert str(error.value).endswith("fetch the file again")


def test_truncation_tells_found_and_expected_bytes(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1234])
    with pytest.raises(CheckpointError) as error:
        SafetensorsFile(tmp_path / "model.safetensors")
    assert f"it has {len(whole) - 1234} bytes, its header promises {len(whole)}" in str(error.value)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_too_short_for_a_header_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match=f"truncated or not a safetensors file: it has {size} bytes"):
        SafetensorsFile(tmp_path / "model.safetensors")


def test_a_file_that_shrinks_while_being_read_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / "model.safetensors")
    file = SafetensorsFile(tmp_path / "model.safetensors")
    os.truncate(tmp_path / "model.safetensors", 2000)
    with pytest.raises(CheckpointError, match="bytes early: it changed while being read"):
        list(file.chunks("a", limit=1 << 20))


class RunsCode:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_pickled_code_is_not_run(tmp_path: Path, save: Any) -> None:
    path, trace = tmp_path / "trol_gating.pt", tmp_path / "was run"
    save({"0.weight": RunsCode(f"touch '{trace}'")}, path)
    with pytest.raises(CheckpointError) as error:
        TorchFile(path)
    assert str(error.value) == (
        f"{path} is damaged or holds pickled code, which is never run here; "
        "expected a state dict of tensors as torch.save writes it"
    )
    assert not trace.exists()


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, -1])
def test_a_truncated_torch_file_is_refused_in_one_line(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError) as error:
        TorchFile(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_torch_file_must_hold_names_and_dense_tensors(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.bin")
    with pytest.raises(CheckpointError, match="holds a list, expected a dict of names to tensors"):
        TorchFile(tmp_path / "list.bin")
    torch.save({"a": torch.zeros(3, 3).to_sparse()}, tmp_path / "sparse.bin")
    with pytest.raises(CheckpointError, match=r"'a' is torch.sparse_coo of torch.float32, expected a dense tensor"):
        TorchFile(tmp_path / "sparse.bin")


def test_a_torch_file_must_store_what_it_shows(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "bomb.bin")
    with pytest.raises(CheckpointError, match=r"'a' \[1000000, 1000000\] has more values than are stored"):
        TorchFile(tmp_path / "bomb.bin")
    torch.save({"a": torch.zeros(3, device="meta")}, tmp_path / "meta.bin")
    with pytest.raises(CheckpointError, match=r"of torch\.float32 without values, expected a dense tensor"):
        TorchFile(tmp_path / "meta.bin")


@pytest.mark.parametrize(
    "tensor", [torch.ones(3, requires_grad=True), torch.nn.Parameter(torch.ones(3)), -torch._neg_view(torch.ones(3))]
)
def test_a_torch_file_may_hold_views_and_parameters(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({"a": tensor}, tmp_path / "w.bin")
    (chunk,) = TorchFile(tmp_path / "w.bin").chunks("a", limit=64)
    assert chunk.tobytes() == torch.ones(3).numpy().tobytes()
