"""The loss of labels, of patches and of names alike: summed over the labels, as most are absent."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trol_export.tiny.patch_labels import LABELS
from trol_export.tiny.untold import partners

_PARTNERS = partners({label: number for number, label in enumerate(LABELS)}, len(LABELS)).float()


def label_loss(logits: Tensor, labels: Tensor, hidden: Tensor | None = None) -> Tensor:
    """The mean over n, a scalar: logits float32 (n, labels), labels bool.

    hidden: bool (n, labels), labels that cannot be seen, of which nothing is said either
    """
    losses = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
    said = told(labels) if hidden is None else told(labels) & ~hidden
    return (losses * said).sum(1).mean()


def told(labels: Tensor) -> Tensor:
    """All but those absent labels that would make a kept pair with one that is there: bool (n, labels)."""
    with torch.no_grad():
        return labels | (labels.float() @ _PARTNERS == 0)
