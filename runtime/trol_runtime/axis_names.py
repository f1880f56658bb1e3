"""What graphs call their symbolic axes, where those who write graphs, build plans and run them must agree."""

from __future__ import annotations

CROPS = "crops"
SEQ = "sequence_length"
BATCH = "batch"
IMAGE_TOKENS = "image_tokens"
CACHE = "cache_length"
