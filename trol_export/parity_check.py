"""Compare a written engine file with the eager model of its checkpoint: whole if small, part by part if large."""

from __future__ import annotations

import gc

import numpy as np
import torch

from trol_export.checkpoint import Checkpoint
from trol_export.parity import BUDGETS, DECODE_STEPS, ParityReport, Probe, make_probe
from trol_export.parity_by_part import check_parts
from trol_graphs.eager import EagerSession, eager_model
from trol_graphs.model import TroLModel
from trol_runtime.bundle import Bundle
from trol_runtime.engine import TroL

# Models up to this size as fp32 are compared whole: eager model and engine side by side stay below 2 GB.
WHOLE_MODEL_BYTES = 2**29


def check_parity(bundle: Bundle, checkpoint: Checkpoint) -> ParityReport:
    """Compare the CPU plan of `bundle` with the eager model; nothing of the bundle is mapped when this returns."""
    manifest = bundle.manifest
    probe = make_probe(manifest.model, manifest.limits)
    fp32_bytes = sum(4 * int(np.prod(tensor.shape)) for tensor in manifest.tensors.values())
    check = _check_whole if fp32_bytes <= WHOLE_MODEL_BYTES else check_parts
    with torch.inference_mode():
        report = check(bundle, checkpoint, probe)
    gc.collect()  # a session that lingers in a cycle would keep the file mapped
    return report


def _check_whole(bundle: Bundle, checkpoint: Checkpoint, probe: Probe) -> ParityReport:
    report = ParityReport(BUDGETS[bundle.manifest.precision], "the whole model, through the runtime")
    engine = TroL(bundle)
    eager = EagerSession(eager_model(engine.config, checkpoint.torch))
    pixels = engine.preprocess([probe.picture])
    with report.record_ranges(_parts(eager.model)):
        embeds = eager.encode(pixels)
        report.compare("image_embeds", engine.session.encode(pixels), embeds)
        flat = embeds.reshape(-1, embeds.shape[-1])[: probe.image_tokens]
        prompts = {"text": (probe.text_ids, None), "picture": (probe.ids, flat if len(flat) else None)}
        for name, (ids, image_embeds) in prompts.items():
            logits = after_prompt = eager.prefill(ids[None], image_embeds)
            report.compare(f"{name}: prefill logits", engine.session.prefill(ids[None], image_embeds), logits)
            for step in range(1, DECODE_STEPS):
                # Teacher-forced with the eager choice, so that one different token does not hide the steps after it.
                token = logits.argmax(-1)
                logits = eager.decode(token)
                report.compare(f"{name}: decode {step} logits", engine.session.decode(token), logits)
            chunked = engine.new_session(prefill_chunk=max(len(ids) // 2, 1))
            report.compare(f"{name}: extend logits", chunked.prefill(ids[None], image_embeds), after_prompt)
    return report


def _parts(model: TroLModel) -> dict[str, torch.nn.Module]:
    names = [*model.VISION, model.EMBEDDING, *model.HEAD]
    layers = {f"layers.{index}": layer for index, layer in enumerate(model.layers)}
    return {name: model.get_submodule(name) for name in names} | layers
