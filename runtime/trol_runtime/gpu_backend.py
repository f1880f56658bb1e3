"""The backend of NVIDIA GPUs: TensorRT plans over weights that lie on the device once, and caches that stay there.

Everything runs on one stream in the order it is asked for; the host waits for embeddings and for logits. Threads take
turns, run by run: inputs and outputs have one place each.
Not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trol_runtime.array_types import Floats, Ids
from trol_runtime.cache_forms import CacheForm, CacheUse, InPlace, NewRows, Prefix
from trol_runtime.cache_names import PAST, cache_names
from trol_runtime.cuda_device import ADDRESS_ALIGNMENT, CudaDevice, GrowingMemory
from trol_runtime.decode_graph import DecodeGraph, Enqueued
from trol_runtime.device_cache import DeviceCache, aligned_length
from trol_runtime.errors import EngineFileError
from trol_runtime.manifest import Limits, Opset
from trol_runtime.model_config import ModelConfig
from trol_runtime.tensorrt_plan import Tensor


class GpuPlan(Enqueued, Protocol):
    """What runs a role; `trol_runtime.tensorrt_plan` says how."""

    dtypes: dict[str, np.dtype[Any]]

    def largest(self, name: str) -> tuple[int, ...]: ...

    def keep_compiled(self) -> None: ...


class GpuBackend:
    """Runs the roles of one engine file; keeps no state of a conversation.

    plans: by role; weights and activations are theirs already. opset: the form they have
    Raises EngineFileError for plans whose caches no addresses can be given for.
    """

    def __init__(
        self,
        device: CudaDevice,
        plans: Mapping[str, GpuPlan],
        config: ModelConfig,
        limits: Limits,
        opset: Opset = "modern",
    ) -> None:
        self._device, self._plans, self._config = device, plans, config
        self._cache_length, self._cache_dtype = _caches_of(plans["decode"], limits)
        self._rooms: dict[tuple[str, str], GrowingMemory] = {}  # of inputs and outputs, by role and name
        self._decode_graph = DecodeGraph(device)
        self._caches: CacheForm = NewRows(device) if opset == "legacy" else InPlace()

    def new_cache(self, keeps_second_pass: bool) -> DeviceCache:
        """An empty cache for a session."""
        return DeviceCache(self._device, self._config.decoder, self._cache_length, self._cache_dtype, keeps_second_pass)

    def encode(self, pixel_values: Floats) -> Floats:
        """(crops, 3, h, w) -> image embeddings (crops, tokens, hidden), as many crops at a time as the plan takes."""
        most = self._plans["vision"].largest("pixel_values")[0]
        with self._device.turn():
            parts = [self._encoded(pixel_values[begin : begin + most]) for begin in range(0, len(pixel_values), most)]
        return np.concatenate(parts)

    def prefill(self, cache: DeviceCache, input_ids: Ids, image_embeds: Floats, cos: Floats, sin: Floats) -> Floats:
        """As `CpuBackend.prefill`."""
        inputs = self._prompt(input_ids, image_embeds, cos, sin)
        with self._device.turn():
            return self._run("prefill", inputs, self._caches.use("prefill", cache, input_ids.shape[1]), rows=1)

    def extend(
        self,
        cache: DeviceCache,
        input_ids: Ids,
        image_embeds: Floats,
        write_index: Ids,
        attention_mask: NDArray[np.bool_],
        cos: Floats,
        sin: Floats,
    ) -> Floats:
        """As `CpuBackend.extend`."""
        inputs = self._prompt(input_ids, image_embeds, cos, sin)
        with self._device.turn():
            use = self._caches.use("extend", cache, input_ids.shape[1], Prefix(write_index, attention_mask))
            return self._run("extend", inputs, use, rows=1)

    def decode(
        self,
        cache: DeviceCache,
        token_ids: Ids,
        write_index: Ids,
        attention_mask: NDArray[np.bool_],
        cos: Floats,
        sin: Floats,
    ) -> Floats:
        """As `CpuBackend.decode`."""
        inputs: dict[str, NDArray[Any]] = {"token_ids": token_ids, "cos": cos, "sin": sin}
        with self._device.turn():
            use = self._caches.use("decode", cache, 1, Prefix(write_index, attention_mask))
            return self._run("decode", inputs, use, rows=len(token_ids))

    def _prompt(self, input_ids: Ids, image_embeds: Floats, cos: Floats, sin: Floats) -> dict[str, NDArray[Any]]:
        """Without a picture the graph still wants a row of embeddings, which it does not use."""
        embeds = image_embeds if len(image_embeds) else np.zeros((1, self._config.decoder.hidden_size), np.float32)
        return {"input_ids": input_ids, "image_embeds": embeds, "cos": cos, "sin": sin}

    def _encoded(self, pixel_values: Floats) -> Floats:
        plan, vision = self._plans["vision"], self._config.vision
        embeds = np.empty(
            (len(pixel_values), vision.tokens_per_crop, self._config.decoder.hidden_size), plan.dtypes["image_embeds"]
        )
        output = self._room("vision", "image_embeds", embeds)
        tensors = self._uploaded("vision", {"pixel_values": pixel_values})
        plan.bind({**tensors, "image_embeds": output})
        plan.enqueue()
        self._device.download(embeds, output.address)
        plan.keep_compiled()
        return embeds.astype(np.float32)

    def _run(self, role: str, inputs: Mapping[str, NDArray[Any]], caches: CacheUse, rows: int) -> NDArray[np.float32]:
        """One run of a role of the language model; returns its logits, (rows, vocab)."""
        plan = self._plans[role]
        logits = np.empty((rows, self._config.decoder.vocab_size), np.float32)
        output = self._room(role, "logits", logits)
        tensors = self._uploaded(role, {**inputs, **caches.inputs})
        tensors |= {**caches.tensors, "logits": output}
        if role == "decode":
            self._decode_graph.run(plan, tensors)
        else:
            plan.bind(tensors)
            plan.enqueue()
        caches.finish()
        self._device.download(logits, output.address)
        plan.keep_compiled()
        return logits

    def _uploaded(self, role: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """The inputs on the device, in the types that the plan takes."""
        tensors = {}
        for name, array in inputs.items():
            array = np.ascontiguousarray(array, self._plans[role].dtypes[name])
            tensors[name] = self._room(role, name, array)
            self._device.upload(tensors[name].address, array)
        return tensors

    def _room(self, role: str, name: str, array: NDArray[Any]) -> Tensor:
        """Where an input or output lies on the device: the same place in every run unless it must grow."""
        room = self._rooms.setdefault((role, name), GrowingMemory(self._device, "inputs and outputs"))
        return Tensor(room.address(array.nbytes), array.shape)


def _caches_of(decode: GpuPlan, limits: Limits) -> tuple[int, np.dtype[Any]]:
    """Length and type of the caches that a plan is built for.

    Each row is an input by itself when its prompt is read, so it must begin where TensorRT takes addresses.
    """
    keys = cache_names(PAST, 1)[0]
    _, heads, length, width = decode.largest(keys)
    token_bytes = heads * width * decode.dtypes[keys].itemsize
    if length * token_bytes % ADDRESS_ALIGNMENT:
        raise EngineFileError(
            f"the caches of the plans have rows of {length * token_bytes} bytes, TensorRT takes them at multiples of "
            f"{ADDRESS_ALIGNMENT}; export the engine with --max-seq {aligned_length(limits.max_seq, token_bytes)}"
        )
    return length, decode.dtypes[keys]
