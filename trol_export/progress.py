"""A bar where bytes flow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def counted(chunks: Iterable[bytes | memoryview], total: int) -> Iterator[bytes | memoryview]:
    """The chunks as they come, under a bar of bytes where stderr is a terminal."""
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, desc="weights", leave=False, disable=None) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(len(chunk))
