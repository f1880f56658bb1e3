"""Built plans on the disk until all of them are kept: with weights inside, one may be all that memory holds."""

from __future__ import annotations

import mmap
from pathlib import Path
from tempfile import TemporaryFile

from trol_runtime.errors import TrolError


def spool(data: bytes, folder: Path) -> memoryview:
    """The same bytes in a file of `folder` that has no name: it goes with the view, or with the process.

    Raises TrolError when the disk refuses it.
    """
    try:
        with TemporaryFile(dir=folder) as file:
            file.write(data)
            file.flush()
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise TrolError(
            f"{folder}: a plan of {len(data):,} bytes cannot be written here while others are built "
            f"({error.strerror}); free as much, or take an engine file on another disk"
        ) from None
