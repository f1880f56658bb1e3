"""Parity of models too large to hold whole as fp32: vision, some layers at real width, and the head, one by one.

The eager model runs every layer, one layer's weights in memory at a time, which also gives the activation ranges. The
engine runs sub-graphs cut from its CPU plan at named values: first, middle and last layer, every role. Eager and engine
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
from trol_export.eager_layer import EagerLayer, Feeds
from trol_export.parity import BUDGETS, ParityReport, Probe
from trol_graphs.eager import load_part
from trol_graphs.model import TroLModel, build_model
from trol_graphs.roles import embed_prompt
from trol_runtime.bundle import Bundle
from trol_runtime.cpu_backend import LANGUAGE_ENTRY, VISION_ENTRY, mapped_session
from trol_runtime.preprocess import preprocess


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
        feeds: Feeds = {"input_ids": ids[None], "image_embeds": image_embeds}
        self.compare_cut("prefill", feeds, {"inputs_embeds": x}, "embedding")
        return x, image_mask

    def layer(self, index: int, x: Tensor, image_mask: Tensor | None, ids: NDArray[np.int64], compare: bool) -> Tensor:
        """Run layer `index` over the prompt, once more over its second half behind its first, then over one more token.

        Returns the prompt's blended output.
        """
        name, decoder = f"{self.model.LAYERS}.{index}", self.model.config.decoder
        eager = EagerLayer(index, self.load(name), self.load(self.model.GATE), decoder)
        seq, half = len(x), len(x) // 2
        empty = eager.empty_caches(seq + 1)
        with self.report.record_ranges({f"layers.{index}": eager.layer}):
            prefill = eager.prefill(x, image_mask, ids, empty[:2])
            # The probe ends in text, so the first decode layer can begin at its last token.
            runs = [prefill, eager.decode(x[-1:], ids[-1:], seq, prefill.caches)]
        if compare:
            masks = [None, None] if image_mask is None else [image_mask[:half], image_mask[half:]]
            prefix = eager.extend(x[:half], masks[0], ids[:half], 0, seq, empty)
            runs.append(eager.extend(x[half:], masks[1], ids[half:], half, seq, prefix.caches))
        del eager  # the engine's turn: never both in memory
        for run in runs if compare else ():
            self.compare_cut(run.role, run.feeds, run.wanted, run.role)
        return prefill.wanted[f"layers.{index}.output"]

    def head(self, x: Tensor) -> None:
        last = x[-1:]
        norm, head = (self.load(name) for name in self.model.HEAD)
        with self.report.record_ranges({"head": torch.nn.ModuleList([norm, head])}):
            logits = head(norm(last))
        del norm, head
        before = f"layers.{self.model.config.decoder.layers - 1}.output"
        self.compare_cut("prefill", {before: x}, {"logits": logits}, "prefill head")
        self.compare_cut("decode", {before: last}, {"logits": logits}, "decode head")
        self.compare_cut("extend", {before: x}, {"logits": logits}, "extend head")

    def compare_cut(self, role: str, feeds: Feeds, wanted: Mapping[str, Tensor], label: str) -> None:
        """Run the sub-graph of `role` between the named values and compare its outputs with the eager ones."""
        session = mapped_session(self.bundle, cut(self.bundle.read(LANGUAGE_ENTRY), role, list(feeds), list(wanted)))
        names = [value.name for value in session.get_inputs()]
        arrays = [np.asarray(value) for value in feeds.values()]
        outputs = session.run(None, dict(zip(names, arrays, strict=True)))
        for (name, eager), engine in zip(wanted.items(), outputs, strict=True):
            self.report.compare(f"{label}: {name}", engine, eager.numpy())

    def load(self, name: str) -> torch.nn.Module:
        return load_part(self.model, name, self.checkpoint.torch)
