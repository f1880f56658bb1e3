"""The loss of labels: a sum over labels, without those that would make a kept pair with one that is there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trol_export.tiny.label_loss import label_loss, told
from trol_export.tiny.patch_labels import LABELS


def labels(*names: str) -> Tensor:
    """(1, labels), those of a patch that shows this."""
    return torch.tensor([[label in names for label in LABELS]])


def untold(*names: str) -> set[str]:
    return {LABELS[number] for number in (~told(labels(*names)))[0].nonzero().flatten().tolist()}


def test_who_knows_nothing_loses_a_coins_entropy_per_label() -> None:
    both = torch.cat([labels(), labels("thing 0", "tallest bar")])
    torch.testing.assert_close(label_loss(torch.zeros(2, len(LABELS)), both), torch.tensor(len(LABELS) * math.log(2)))


def test_the_more_is_right_the_smaller_it_is() -> None:
    due = labels("blue", "star", "thing 0")
    right, wrong = (torch.where(due == same, 5.0, -5.0) for same in (True, False))
    assert label_loss(right, due) < 0.01 * len(LABELS)
    assert label_loss(wrong, due) > 4 * (len(LABELS) - 5)


def test_where_a_colour_is_nothing_is_said_about_the_shapes_that_training_never_shows_in_it() -> None:
    assert untold("red", "star") == {"heart", "triangle", "yellow", "purple"}
    assert untold("blue") == {"moon"}
    assert untold() == untold("A", "character 0", "middle of a thing") == set()


def test_what_is_there_is_always_told() -> None:
    # Things overlap, and what two names refer to may be one patch.
    assert "heart" not in untold("red", "heart")


def test_what_is_not_told_costs_nothing_whatever_is_said() -> None:
    due = labels("red", "star")
    logits = torch.zeros(1, len(LABELS))
    said = logits.clone()
    said[0, LABELS.index("heart")] = 9.0
    assert label_loss(said, due) == label_loss(logits, due)
    said[0, LABELS.index("moon")] = 9.0
    assert label_loss(said, due) > label_loss(logits, due) + 8


def test_neither_does_what_cannot_be_seen() -> None:
    due, hidden = labels("star"), labels("red", "blue")
    said = torch.zeros(1, len(LABELS))
    said[0, LABELS.index("red")] = 9.0
    assert label_loss(said, due, hidden) == label_loss(torch.zeros(1, len(LABELS)), due, hidden)
    assert label_loss(said, due) > label_loss(said, due, hidden) + 8
