"""What the projector is taught first: to say what a patch shows in the words of the language model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trol_export.tiny.patch_labels import LABELS

# Of the logits: with it, embeddings of the length that tokens come to in training tell presence from absence.
_SHARPNESS, _THRESHOLD = 3.0, 3.0


class WordHead(nn.Module):
    """Logits of LABELS for image embeddings: how far each reaches in the direction of the label's word.

    vocabulary: piece -> row of the embedding table. Labels that are no pieces, such as places, have directions of their
      own.
    """

    def __init__(self, vocabulary: Mapping[str, int], hidden_size: int) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.empty(len(LABELS), hidden_size))
        named = [(place, vocabulary[label]) for place, label in enumerate(LABELS) if label in vocabulary]
        self._places, self._rows = (torch.tensor(numbers) for numbers in zip(*named, strict=True))

    def forward(self, image_embeds: Tensor, table: Tensor) -> Tensor:
        """image_embeds (n, hidden), embedding table (rows, hidden) -> float32 (n, labels)

        The table takes no gradient: image embeddings come to the words, not the words to them.
        """
        directions = self.own.float().index_copy(0, self._places, table.detach()[self._rows].float())
        return _SHARPNESS * image_embeds.float() @ F.normalize(directions, dim=1).T - _THRESHOLD
