"""How weights are changed: the layers' matrices by Muon, everything else by AdamW.

Muon (Jordan and others, 2024) makes a step of the same length in every direction of a matrix. TroL-tiny's tower comes
in half the steps, its language model in three fifths, to the loss that AdamW brought them to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from trol_export.tiny.recipe import Phase, Recipe


class Optimizers:
    """Both over `parameters`, name -> parameter; biases, norms and tables of embeddings are not decayed."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], recipe: Recipe) -> None:
        matrices: list[nn.Parameter] = []
        decayed: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in parameters.items():
            if parameter.dim() == 1 or "embedding" in name:
                others.append(parameter)
            else:
                (matrices if ".layers." in name else decayed).append(parameter)
        decay = recipe.weight_decay
        groups = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(groups, betas=recipe.betas, fused=True)
        # A group, as no list may be empty: the projector alone has no matrices of layers.
        self.muon = torch.optim.Muon(
            [{"params": matrices}], momentum=recipe.momentum, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )

    def step(self, rate: float, phase: Phase) -> None:
        """Change the weights by their gradients, at this learning rate; matrices at `phase.matrix_rate` times it."""
        for optimizer, factor in ((self.adamw, 1.0), (self.muon, phase.matrix_rate)):
            for group in optimizer.param_groups:
                group["lr"] = factor * rate
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"adamw": self.adamw.state_dict(), "muon": self.muon.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.adamw.load_state_dict(state["adamw"])
        self.muon.load_state_dict(state["muon"])
