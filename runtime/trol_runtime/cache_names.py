"""What graphs call the caches they take and return, where those who write graphs and those who run them must agree.

A cache is PREFIX.LAYER.key or PREFIX.LAYER.value.
"""

from __future__ import annotations

# Of the first pass over a prompt, from which decode goes on.
PAST, PRESENT = "past_key_values", "present"
# Of the second pass, which only the continuation of a prompt needs.
PAST_SECOND_PASS, PRESENT_SECOND_PASS = "past_second_pass", "present_second_pass"


def cache_names(prefix: str, layers: int) -> list[str]:
    """Key and value of layer 0, of layer 1, ..."""
    return [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
