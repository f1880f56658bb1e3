"""Where the trained TroL-tiny lies: in this package, so that no network is needed."""

from __future__ import annotations

from pathlib import Path

from trol_runtime.errors import CheckpointError

PACKAGED_SIZE = "tiny"  # what --size calls it
CHECKPOINT = Path(__file__).with_name("checkpoint")


def packaged_checkpoint() -> Path:
    """The checkpoint's folder. Raises CheckpointError when it is missing: a source tree may come without weights."""
    if not (CHECKPOINT / "config.json").is_file():
        raise CheckpointError(
            f"{CHECKPOINT} is missing, this installation comes without TroL-tiny's weights: "
            "train them with python -m trol_export.tiny.train, then give --checkpoint build/tiny/checkpoint"
        )
    return CHECKPOINT
