"""Official checkpoints from the Hugging Face hub: the files an export needs and no others, in the hub's own cache.

huggingface_hub does the work and its settings hold: HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, its login, its progress bars.
A connection that breaks is resumed, and files that are complete are not fetched again. Added here: which files are
needed, whether they fit on the disk, plain errors.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from trol_export.checkpoint import (
    GATING_FILE,
    SAFETENSORS_FILE,
    SAFETENSORS_INDEX,
    TORCH_FILE,
    TORCH_INDEX,
    weight_layout,
)
from trol_export.tiny.packaged import PACKAGED_SIZE
from trol_export.token_ids import TOKENIZER_FILES
from trol_export.weight_files import TensorInfo
from trol_runtime.errors import CheckpointError, TrolError, UsageError
from trol_runtime.manifest import DTYPE_BYTES

REPOSITORIES = {size: f"BK-Lee/TroL-{size.upper()}" for size in ("1.8b", "3.8b", "7b")}

SMALL_FILES = ("config.json", "generation_config.json", GATING_FILE, SAFETENSORS_INDEX, TORCH_INDEX, *TOKENIZER_FILES)
# The official loader takes the first of these layouts that is there.
WEIGHT_LAYOUTS = (
    (SAFETENSORS_FILE, SAFETENSORS_FILE),
    (SAFETENSORS_INDEX, "model-*-of-*.safetensors"),
    (TORCH_FILE, TORCH_FILE),
    (TORCH_INDEX, "pytorch_model-*-of-*.bin"),
)

WHAT_TO_PASS = f"pass a checkpoint's directory or a hub id such as {REPOSITORIES['1.8b']}"
SHOWN_CHARACTERS = 100  # of a name in a message


class Snapshot(NamedTuple):
    """One commit of a repository, as far as its files are in the local cache."""

    directory: Path
    commit: str


def repository_of_size(size: str) -> str | None:
    """The official repository of `--size`, None when it comes with this package; UsageError for any other size."""
    if size.lower() == PACKAGED_SIZE:
        return None
    if size.lower() not in REPOSITORIES:
        sizes = ", ".join([*REPOSITORIES, PACKAGED_SIZE])
        raise UsageError(f"there is no TroL of size {size!r}; sizes are {sizes}")
    return REPOSITORIES[size.lower()]


def is_repository(source: str) -> bool:
    """Whether `source` has the form of a repository's name, such as BK-Lee/TroL-1.8B; `./name` and `../name` do not."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) is not None


def repository_of_source(source: str | Path) -> str | None:
    """The repository that `--checkpoint` or `--check` names, None when it is a path that exists.

    Raises UsageError when it can be neither.
    """
    name = str(source)
    try:
        if Path(source).exists():
            return None
    except OSError as error:
        shown = name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}..."
        raise UsageError(f"'{shown}' cannot be opened ({error.strerror}): {WHAT_TO_PASS}") from None
    if not is_repository(name):
        raise UsageError(f"'{name}' does not exist: {WHAT_TO_PASS}")
    return name


def fetch(repo_id: str, revision: str = "main") -> Snapshot:
    """Bring everything an export needs into the cache; without a network, it must be there already.

    Raises UsageError when `repo_id` cannot be a repository's name; CheckpointError, one sentence, when the repository
    or revision does not exist, is gated or unreachable, or is no TroL checkpoint; TrolError when the disk is too small.
    """
    return _download(repo_id, revision, weights=True)


def fetch_small_files(repo_id: str, revision: str = "main") -> Snapshot:
    """Like `fetch`, without the weights: config, index, tokenizer and gate."""
    return _download(repo_id, revision, weights=False)


def remote_tensors(repo_id: str, commit: str) -> dict[str, TensorInfo]:
    """Names, dtypes and shapes of a repository's safetensors files, from their headers alone.

    Raises CheckpointError when there are no safetensors files or their headers are damaged.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    with _plain_errors(repo_id, commit):
        try:
            files = HfApi().get_safetensors_metadata(repo_id, revision=commit).files_metadata
        except NotASafetensorsRepoError:
            raise CheckpointError(
                f"'{repo_id}' has no safetensors files, whose headers tell shapes without the weights: "
                f"{_fetch_command(repo_id, commit)} and trol-export --check DIR"
            ) from None
        except SafetensorsParsingError as error:
            raise CheckpointError(f"'{repo_id}': {' '.join(str(error).split())}") from None
    tensors = [(name, t) for file in files.values() for name, t in file.tensors.items()]
    unknown = sorted({t.dtype for _, t in tensors} - DTYPE_BYTES.keys())
    if unknown:
        raise CheckpointError(f"'{repo_id}' stores tensors as {', '.join(unknown)}, expected F32, F16 or BF16")
    return {name: TensorInfo(name, t.dtype, tuple(t.shape)) for name, t in tensors}


def _download(repo_id: str, revision: str, weights: bool) -> Snapshot:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    with _plain_errors(repo_id, revision):
        try:
            info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except _unreachable():
            # Asked for more, huggingface_hub may refuse for lack of files that no export needs.
            directory = snapshot_download(
                repo_id, revision=revision, allow_patterns=["config.json"], local_files_only=True
            )
            if not _is_complete(Path(directory), weights):
                raise
            return Snapshot(Path(directory), Path(directory).name)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        wanted = _needed(repo_id, sizes, weights)
        _require_disk(repo_id, str(info.sha), {name: sizes[name] for name in wanted})
        directory = snapshot_download(repo_id, revision=revision, allow_patterns=wanted)
    return Snapshot(Path(directory), Path(directory).name)


def _is_complete(cached: Path, weights: bool) -> bool:
    """Whether the cache holds what no export can do without; an interrupted download or `--check` leaves less."""
    required = ["config.json", GATING_FILE]
    if weights:
        known = any((cached / mark).is_file() for mark, _ in WEIGHT_LAYOUTS)
        required += weight_layout(cached) if known else [SAFETENSORS_FILE]
    return all((cached / name).is_file() for name in required)


def _needed(repo_id: str, names: dict[str, int], weights: bool) -> list[str]:
    """The files to fetch; CheckpointError when the repository cannot be a TroL checkpoint."""
    patterns = next((pattern for mark, pattern in WEIGHT_LAYOUTS if mark in names), None)
    missing = [name for name in ("config.json", GATING_FILE) if name not in names]
    if patterns is None:
        missing.append(SAFETENSORS_FILE)
    if missing:
        raise CheckpointError(f"'{repo_id}' is no TroL checkpoint: it has no {', no '.join(missing)}")
    small = [name for name in names if name in SMALL_FILES]
    return small + [name for name in names if weights and fnmatch(name, str(patterns))]


def _require_disk(repo_id: str, commit: str, sizes: dict[str, int]) -> None:
    """Raise TrolError when what is not yet in the cache does not fit on its disk."""
    from huggingface_hub import constants, try_to_load_from_cache

    needed = sum(
        size
        for name, size in sizes.items()
        if not isinstance(try_to_load_from_cache(repo_id, name, revision=commit), str)
    )
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise TrolError(
            f"'{repo_id}' needs {needed / 1e9:.1f} GB more in {cache}, where {free / 1e9:.1f} GB are free: "
            "make room, or set HF_HOME to a folder on a larger disk"
        )


def _unreachable() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises without a network: the errors of its transport, once requests, now httpx2."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, OSError)


@contextmanager
def _plain_errors(repo_id: str, revision: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence that says what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError:
        raise UsageError(f"'{repo_id}'{_no_directory(repo_id)} cannot name a repository: {WHAT_TO_PASS}") from None
    except GatedRepoError:
        raise CheckpointError(
            f"'{repo_id}' is gated: accept its terms at {constants.ENDPOINT}/{repo_id}, log in with `hf auth login`, "
            "and run the command again"
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"'{repo_id}' is neither a directory here nor a repository on {constants.ENDPOINT} that you may read: "
            "check the name, or log in with `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"'{repo_id}' has no revision '{revision}': check --revision (default main)") from None
    except _unreachable() as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise TrolError(
                f"the disk of {constants.HF_HUB_CACHE} is full: make room, or set HF_HOME to a folder on a larger disk"
            ) from None
        raise CheckpointError(
            f"'{repo_id}'{_no_directory(repo_id)} cannot be fetched ({_reason(error)}), "
            f"and {constants.HF_HUB_CACHE} does not hold all of it: where there is a network run "
            f"`{_fetch_command(repo_id, revision)}`, bring DIR here and pass --checkpoint DIR"
        ) from None


def _no_directory(repo_id: str) -> str:
    """What to say of a name that may have been meant as a path; a repository asked for by `--size` may be one too."""
    return "" if Path(repo_id).exists() else " is no directory here and"


def _reason(error: BaseException) -> str:
    """The first cause, in one line: looking into the cache fails only because asking the hub did before."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    while error.__context__ is not None:
        error = error.__context__
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _fetch_command(repo_id: str, revision: str) -> str:
    return f"hf download {repo_id}{f' --revision {revision}' if revision != 'main' else ''} --local-dir DIR"
