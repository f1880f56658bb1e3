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
from trol_runtime.cuda_device import CudaDevice, DeviceMemory
from trol_runtime.decode_graph import DecodeGraph
from trol_runtime.device_cache import DeviceCache
from trol_runtime.manifest import Limits, Opset
from trol_runtime.model_config import ModelConfig
from trol_runtime.tensorrt_plan import Tensor


class GpuPlan(Protocol):
    """What runs a role; `trol_runtime.tensorrt_plan` says how."""

    dtypes: dict[str, np.dtype[Any]]

    def largest(self, name: str) -> tuple[int, ...]: ...

    def bind(self, tensors: Mapping[str, Tensor]) -> None: ...

    def enqueue(self) -> None: ...

    def keep_compiled(self) -> None: ...


class GpuBackend:
    """Runs the roles of one engine file; keeps no state of a conversation.

    plans: by role; weights and activations are theirs already. opset: the form they have
    """

    def __init__(
        self,
        device: CudaDevice,
        plans: Mapping[str, GpuPlan],
        config: ModelConfig,
        limits: Limits,
        opset: Opset = "modern",
    ) -> None:
        self._device, self._plans, self._config, self._limits = device, plans, config, limits
        self._staged: dict[tuple[str, str], DeviceMemory] = {}  # by role and name, as large as they were needed
        self._decode_graph = DecodeGraph(device)
        self._caches: CacheForm = NewRows(device) if opset == "legacy" else InPlace()

    def new_cache(self, keeps_second_pass: bool) -> DeviceCache:
        """An empty cache for a session."""
        dtype = self._plans["decode"].dtypes[cache_names(PAST, 1)[0]]
        return DeviceCache(self._device, self._config.decoder, self._limits.max_seq, dtype, keeps_second_pass)

    def encode(self, pixel_values: Floats) -> Floats:
        """(crops, 3, h, w) -> image embeddings (crops, tokens, hidden), as many crops at a time as the plan takes."""
        most = self._plans["vision"].largest("pixel_values")[0]
        with self._device.lock:
            parts = [self._encoded(pixel_values[begin : begin + most]) for begin in range(0, len(pixel_values), most)]
        return np.concatenate(parts)

    def prefill(self, cache: DeviceCache, input_ids: Ids, image_embeds: Floats, cos: Floats, sin: Floats) -> Floats:
        """As `CpuBackend.prefill`."""
        inputs = self._prompt(input_ids, image_embeds, cos, sin)
        with self._device.lock:
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
        with self._device.lock:
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
        with self._device.lock:
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
        output = self._room("vision", "image_embeds", embeds.nbytes)
        tensors = self._uploaded("vision", {"pixel_values": pixel_values})
        plan.bind({**tensors, "image_embeds": Tensor(output.address, embeds.shape)})
        plan.enqueue()
        self._device.download(embeds, output.address)
        plan.keep_compiled()
        return embeds.astype(np.float32)

    def _run(self, role: str, inputs: Mapping[str, NDArray[Any]], caches: CacheUse, rows: int) -> NDArray[np.float32]:
        """One run of a role of the language model; returns its logits, (rows, vocab)."""
        plan = self._plans[role]
        logits = np.empty((rows, self._config.decoder.vocab_size), np.float32)
        output = self._room(role, "logits", logits.nbytes)
        tensors = self._uploaded(role, {**inputs, **caches.inputs})
        tensors |= {**caches.tensors, "logits": Tensor(output.address, logits.shape)}
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
            memory = self._room(role, name, array.nbytes)
            self._device.upload(memory.address, array)
            tensors[name] = Tensor(memory.address, array.shape)
        return tensors

    def _room(self, role: str, name: str, nbytes: int) -> DeviceMemory:
        """Memory for an input or output, the same in every run unless it must grow."""
        known = self._staged.get((role, name))
        if known is None or known.nbytes < nbytes:
            known = self._staged[role, name] = self._device.allocate(nbytes, "inputs and outputs")
        return known
