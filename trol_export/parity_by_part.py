"""Parity of models too large to hold whole as fp32: vision, some layers at real width, and the head, one by one.

The eager model runs every layer, one layer's weights in memory at a time, which also gives the activation ranges. The
engine runs sub-graphs cut from its CPU plan at named values: first, middle and last layer, both roles. Eager and engine
are never in memory together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trol_engines.cpu_model import cut
from trol_export.checkpoint import Checkpoint
from trol_export.parity import BUDGETS, ParityReport, Probe
from trol_graphs.eager import load_part
from trol_graphs.model import TroLModel, build_model
from trol_graphs.named_values import recorded
from trol_graphs.roles import decode_layer, embed_prompt, traverse
from trol_runtime.bundle import Bundle
from trol_runtime.cpu_backend import LANGUAGE_ENTRY, VISION_ENTRY, mapped_session
from trol_runtime.preprocess import preprocess
from trol_runtime.rope import rope_rows


def check_parts(bundle: Bundle, checkpoint: Checkpoint, probe: Probe) -> ParityReport:
    """Compare the CPU plan of `bundle` with the eager model, part by part."""
    config = bundle.manifest.model
    compared = sorted({0, config.decoder.layers // 2, config.decoder.layers - 1})
    scope = f"vision, embedding, layers {', '.join(map(str, compared))} of {config.decoder.layers}, head"
    report = ParityReport(BUDGETS[bundle.manifest.precision], scope)
    check = _PartCheck(bundle, checkpoint, build_model(config), report)
    embeds = check.vision(preprocess([probe.picture], config.vision))
    x, image_mask = check.embedding(probe.ids, embeds.reshape(-1, embeds.shape[-1])[: probe.image_tokens])
    for index in range(config.decoder.layers):
        x = check.layer(index, x, image_mask, probe.ids, compare=index in compared)
    check.head(x)
    return report


@dataclass(frozen=True)
class _PartCheck:
    bundle: Bundle
    checkpoint: Checkpoint
    model: TroLModel  # on the meta device
    report: ParityReport

    def vision(self, pixels: NDArray[np.float32]) -> Tensor:
        x = torch.from_numpy(pixels)
        tower, projector = (self.load(name) for name in self.model.VISION)
        with self.report.record_ranges({"vision": tower, "projector": projector}):
            x = projector(tower(x))
        del tower, projector
        (engine,) = mapped_session(self.bundle, self.bundle.read(VISION_ENTRY)).run(None, {"pixel_values": pixels})
        self.report.compare("image_embeds", engine, x.numpy())
        return x

    def embedding(self, ids: NDArray[np.int64], image_embeds: Tensor) -> tuple[Tensor, Tensor | None]:
        if not len(image_embeds):
            image_embeds = torch.zeros(1, self.model.config.decoder.hidden_size)
        embedding = self.load(self.model.EMBEDDING)
        x, image_mask = embed_prompt(embedding, self.model.config, torch.from_numpy(ids), image_embeds)
        del embedding
        feeds = {"input_ids": ids[None], "image_embeds": image_embeds.numpy()}
        self.compare_cut("prefill", feeds, {"inputs_embeds": x}, "embedding")
        return x, image_mask

    def layer(self, index: int, x: Tensor, image_mask: Tensor | None, ids: NDArray[np.int64], compare: bool) -> Tensor:
        """Run layer `index` over the prompt, then over one more token; returns the prompt's blended output."""
        config, seq = self.model.config, len(x)
        layer = self.load(f"{self.model.LAYERS}.{index}")
        gate = self.load(self.model.GATE)
        empty = [torch.zeros(1, config.decoder.kv_heads, seq + 1, config.decoder.head_dim) for _ in range(2)]
        cos, sin = rope_rows(config.decoder, np.arange(seq)[None], seq)
        step_cos, step_sin = rope_rows(config.decoder, np.array([[seq]]), seq + 1)
        write_index, mask = torch.tensor([seq]), torch.ones(1, 1, 1, seq + 1, dtype=torch.bool)
        with self.report.record_ranges({f"layers.{index}": layer}), recorded() as values:
            rope = torch.from_numpy(cos), torch.from_numpy(sin)
            output, written = traverse(layer, index, x, image_mask, *rope, empty, gate)
            prompt_values = dict(values)
            rope = torch.from_numpy(step_cos), torch.from_numpy(step_sin)
            step, step_written = decode_layer(layer, index, x[-1:], *rope, write_index, mask, written)
        del layer
        if not compare:
            return output
        before = f"layers.{index - 1}.output" if index else "inputs_embeds"
        caches = [f"past_key_values.{index}.{part}" for part in ("key", "value")]
        present = [f"present.{index}.{part}" for part in ("key", "value")]
        feeds: dict[str, Tensor | NDArray] = {
            before: x,
            "input_ids": ids[None],
            "cos": cos,
            "sin": sin,
            **dict(zip(caches, empty, strict=True)),
        }
        wanted = {**prompt_values, **dict(zip(present, written, strict=True))}
        self.compare_cut("prefill", feeds, wanted, "prefill")
        # The probe ends in text, so the first decode layer can begin at its last token.
        feeds = {before: x[-1:]} if index else {"token_ids": ids[-1:]}
        feeds |= {"cos": step_cos, "sin": step_sin, "write_index": write_index, "attention_mask": mask}
        feeds |= dict(zip(caches, written, strict=True))
        wanted = {f"layers.{index}.output": step, **dict(zip(present, step_written, strict=True))}
        self.compare_cut("decode", feeds, wanted, "decode")
        return output

    def head(self, x: Tensor) -> None:
        last = x[-1:]
        norm, head = (self.load(name) for name in self.model.HEAD)
        with self.report.record_ranges({"head": torch.nn.ModuleList([norm, head])}):
            logits = head(norm(last))
        del norm, head
        before = f"layers.{self.model.config.decoder.layers - 1}.output"
        self.compare_cut("prefill", {before: x}, {"logits": logits}, "prefill head")
        self.compare_cut("decode", {before: last}, {"logits": logits}, "decode head")

    def compare_cut(
        self, role: str, feeds: Mapping[str, Tensor | NDArray], wanted: Mapping[str, Tensor], label: str
    ) -> None:
        """Run the sub-graph of `role` between the named values and compare its outputs with the eager ones."""
        session = mapped_session(self.bundle, cut(self.bundle.read(LANGUAGE_ENTRY), role, list(feeds), list(wanted)))
        names = [value.name for value in session.get_inputs()]
        arrays = [np.asarray(value) for value in feeds.values()]
        outputs = session.run(None, dict(zip(names, arrays, strict=True)))
        for (name, eager), engine in zip(wanted.items(), outputs, strict=True):
            self.report.compare(f"{label}: {name}", engine, eager.numpy())

    def load(self, name: str) -> torch.nn.Module:
        return load_part(self.model, name, self.checkpoint.torch)
