"""Named values: seen by every open recorder of an eager run, and never a copy of what they name."""

from __future__ import annotations

import torch

from trol_graphs.named_values import named, recorded


def test_named_values_reach_every_open_recorder_and_no_closed_one() -> None:
    x = torch.ones(2)
    with recorded() as outer:
        with recorded() as inner:
            assert named(x, "a") is x
        named(x, "b")
    named(x, "c")
    assert (list(outer), list(inner)) == (["a", "b"], ["a"])
