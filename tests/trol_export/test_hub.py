"""Fetching from the hub, against a small hub of our own on the loopback interface.

huggingface_hub reads its settings when it is imported, so each test asks in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from golden.seeded_checkpoint import write_checkpoint
from golden.tiny_tokenizer import write_tiny_tokenizer
from trol_export.checkpoint_check import check_checkpoint
from trol_export.hub import REPOSITORIES, repository_of_size, repository_of_source
from trol_runtime.errors import UsageError

REPO = "BK-Lee/TroL-1.8B"
COMMIT = hashlib.sha1(b"a commit").hexdigest()


@dataclass
class FakeHub:
    """One repository at one commit, and what was asked for."""

    endpoint: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    announced_sizes: dict[str, int] = field(default_factory=dict)
    error_code: str = ""  # what the hub answers instead, in its X-Error-Code header
    breaks: int = 0  # how many more downloads break off in the middle
    downloads: list[tuple[str, str]] = field(default_factory=list)  # file and Range of each GET

    def size(self, name: str) -> int:
        return self.announced_sizes.get(name, len(self.files[name]))

    def answer(self, path: str) -> Any:
        """The JSON of an API call."""
        listing = [{"rfilename": name, "size": self.size(name), "blobId": name} for name in self.files]
        if f"/api/models/{REPO}/revision/" in path:
            return {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": listing, "tags": [], "downloads": 0}
        if f"/api/models/{REPO}/tree/" in path:
            return [{"type": "file", "path": e["rfilename"], "size": e["size"], "oid": e["blobId"]} for e in listing]
        return None


def handler_of(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if hub.error_code:
                self.reply(403 if hub.error_code == "GatedRepo" else 404, b"", {"X-Error-Code": hub.error_code})
            elif path.startswith("/api/"):
                self.reply(200, json.dumps(hub.answer(path)).encode(), {"Content-Type": "application/json"})
            elif path.startswith(f"/{REPO}/resolve/") and path.split("/", 5)[5] in hub.files:
                self.send_file(path.split("/", 5)[5])
            else:
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

        def send_file(self, name: str) -> None:
            content = hub.files[name]
            headers = {
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            if self.command == "HEAD":
                self.reply(200, b"", headers | {"Content-Length": str(len(content))})
                return
            wanted = self.headers.get("Range", "")
            hub.downloads.append((name, wanted))
            begin, end = wanted.removeprefix("bytes=").split("-") if wanted else ("0", "")
            part = content[int(begin) : int(end) + 1 if end else None]
            last = int(begin) + len(part) - 1
            if wanted:
                headers["Content-Range"] = f"bytes {begin}-{last}/{len(content)}"
            if hub.breaks and len(part) > 50_000:
                hub.breaks -= 1
                self.reply(200, part[:50_000], headers | {"Content-Length": str(len(part))})
                self.close_connection = True
                return
            self.reply(206 if wanted else 200, part, headers)

    return Handler


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A hub that holds a micro checkpoint, its tokenizer, and files that no export needs."""
    directory = write_checkpoint("micro-internlm2", tmp_path / "origin", max_shard_bytes=120_000)
    write_tiny_tokenizer("internlm2", directory)
    hub = FakeHub(files={file.name: file.read_bytes() for file in sorted(directory.iterdir())})
    hub.files |= {"README.md": b"# TroL", "pytorch_model.bin": b"twice", "training_args.bin": b"x", "figure.png": b"x"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


PROGRAM = """
import json, sys
from trol_export import hub
from trol_runtime.errors import TrolError
call, arguments = sys.argv[1], sys.argv[2:]
try:
    if call == "check":
        from trol_export.checkpoint_check import check_checkpoint
        print(json.dumps(check_checkpoint(*arguments).to_json()))
    else:
        directory, commit = hub.fetch(*arguments)
        print(json.dumps({"directory": str(directory), "commit": commit}))
except TrolError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""


def ask(hub: FakeHub, tmp_path: Path, call: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run `fetch` or `check` in a new process with a cache of its own; no traceback may show."""
    settings = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, call, *arguments],
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def cached(tmp_path: Path) -> set[str]:
    return {file.name for file in (tmp_path / "hf").glob("hub/models--*/snapshots/*/*")}


NEEDED = {
    "config.json",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "trol_gating.pt",
    "tokenizer.json",
}


def test_sizes_name_the_official_repositories() -> None:
    assert REPOSITORIES == {"1.8b": "BK-Lee/TroL-1.8B", "3.8b": "BK-Lee/TroL-3.8B", "7b": "BK-Lee/TroL-7B"}
    assert repository_of_size("3.8B") == "BK-Lee/TroL-3.8B"


def test_the_size_that_comes_with_this_package_has_no_repository() -> None:
    assert repository_of_size("tiny") is None


def test_another_size_is_a_wrong_call() -> None:
    with pytest.raises(UsageError) as error:
        repository_of_size("13b")
    assert str(error.value) == "there is no TroL of size '13b'; sizes are 1.8b, 3.8b, 7b, tiny"


def test_an_existing_path_is_no_repository_even_if_it_looks_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert repository_of_source("BK-Lee/TroL-1.8B") == "BK-Lee/TroL-1.8B"
    (tmp_path / "BK-Lee" / "TroL-1.8B").mkdir(parents=True)
    assert repository_of_source("BK-Lee/TroL-1.8B") is None


@pytest.mark.parametrize("source", ["./missing", "../missing", "ckpt/.missing", "/ckpt/missing", "missing", "a/b/c"])
def test_a_path_that_does_not_exist_is_a_wrong_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        repository_of_source(source)
    assert str(error.value) == (
        f"'{source}' does not exist: pass a checkpoint's directory or a hub id such as BK-Lee/TroL-1.8B"
    )


@pytest.mark.parametrize("source", ["x" * 3000, "x" * 3000 + "/TroL"])
def test_a_source_too_long_for_a_path_is_a_wrong_call(source: str) -> None:
    with pytest.raises(UsageError) as error:
        repository_of_source(source)
    assert str(error.value) == (
        f"'{source[:100]}...' cannot be opened (File name too long): "
        "pass a checkpoint's directory or a hub id such as BK-Lee/TroL-1.8B"
    )


def test_fetching_brings_the_needed_files_alone_and_tells_the_commit(hub: FakeHub, tmp_path: Path) -> None:
    answer = ask(hub, tmp_path, "fetch", REPO)
    assert answer["commit"] == COMMIT
    assert cached(tmp_path) == NEEDED
    directory = Path(answer["directory"])
    assert {name: (directory / name).read_bytes() for name in NEEDED} == {name: hub.files[name] for name in NEEDED}


def test_what_is_cached_is_not_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    first = ask(hub, tmp_path, "fetch", REPO)
    hub.downloads.clear()
    assert ask(hub, tmp_path, "fetch", REPO) == first
    assert hub.downloads == []


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_a_network_the_cache_serves(hub: FakeHub, tmp_path: Path, environment: dict[str, str]) -> None:
    first = ask(hub, tmp_path, "fetch", REPO)
    assert ask(hub, tmp_path, "fetch", REPO, **environment) == first


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "[Errno 111] Connection refused"),
    ],
)
def test_without_a_network_and_cache_one_sentence_says_what_to_run_elsewhere(
    hub: FakeHub, tmp_path: Path, environment: dict[str, str], reason: str
) -> None:
    assert ask(hub, tmp_path, "fetch", REPO, **environment) == {
        "error": "CheckpointError",
        "message": unfetched(reason, tmp_path),
    }


def unfetched(reason: str, tmp_path: Path) -> str:
    return (
        f"'{REPO}' is no directory here and cannot be fetched ({reason}), and {tmp_path / 'hf' / 'hub'} does not hold "
        f"all of it: where there is a network run `hf download {REPO} --local-dir DIR`, bring DIR here and pass "
        "--checkpoint DIR"
    )


def test_without_a_network_what_a_check_cached_is_not_enough_for_an_export(hub: FakeHub, tmp_path: Path) -> None:
    ask(hub, tmp_path, "check", REPO)
    answer = ask(hub, tmp_path, "fetch", REPO, HF_HUB_OFFLINE="1")
    assert answer == {"error": "CheckpointError", "message": unfetched("HF_HUB_OFFLINE is set", tmp_path)}


@pytest.mark.parametrize("lost", ["config.json", "trol_gating.pt", "model-00002-of-00002.safetensors"])
def test_without_a_network_every_file_that_no_export_can_do_without_must_be_cached(
    hub: FakeHub, tmp_path: Path, lost: str
) -> None:
    (Path(ask(hub, tmp_path, "fetch", REPO)["directory"]) / lost).unlink()
    answer = ask(hub, tmp_path, "fetch", REPO, HF_HUB_OFFLINE="1")
    assert answer == {"error": "CheckpointError", "message": unfetched("HF_HUB_OFFLINE is set", tmp_path)}


def test_without_a_network_a_check_needs_no_cached_weights(hub: FakeHub, tmp_path: Path) -> None:
    online = ask(hub, tmp_path, "check", REPO)
    offline = ask(hub, tmp_path, "check", REPO, HF_HUB_OFFLINE="1")
    assert offline["deviations"][0].startswith(f"'{REPO}' is no directory here and cannot be fetched (HF_HUB_OFFLINE")
    assert offline["deviations"][1:] == online["deviations"]


def test_the_command_to_run_elsewhere_names_the_revision(hub: FakeHub, tmp_path: Path) -> None:
    answer = ask(hub, tmp_path, "fetch", REPO, "v1.1", HF_HUB_OFFLINE="1")
    assert f"`hf download {REPO} --revision v1.1 --local-dir DIR`" in answer["message"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "RepoNotFound",
            "'BK-Lee/TroL-1.8B' is neither a directory here nor a repository on ENDPOINT that you may read: "
            "check the name, or log in with `hf auth login`",
        ),
        ("RevisionNotFound", "'BK-Lee/TroL-1.8B' has no revision 'v9': check --revision (default main)"),
        (
            "GatedRepo",
            "'BK-Lee/TroL-1.8B' is gated: accept its terms at ENDPOINT/BK-Lee/TroL-1.8B, "
            "log in with `hf auth login`, and run the command again",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub: FakeHub, tmp_path: Path, code: str, message: str) -> None:
    hub.error_code = code
    answer = ask(hub, tmp_path, "fetch", REPO, "v9")
    assert answer == {"error": "CheckpointError", "message": message.replace("ENDPOINT", hub.endpoint)}


def test_a_name_that_cannot_be_a_repository_is_a_wrong_call(hub: FakeHub, tmp_path: Path) -> None:
    assert ask(hub, tmp_path, "fetch", "a--b/c") == {
        "error": "UsageError",
        "message": "'a--b/c' is no directory here and cannot name a repository: "
        "pass a checkpoint's directory or a hub id such as BK-Lee/TroL-1.8B",
    }


def test_a_repository_of_another_model_is_refused_before_any_download(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {"config.json": b"{}", "README.md": b""}
    answer = ask(hub, tmp_path, "fetch", REPO)
    assert answer["message"] == f"'{REPO}' is no TroL checkpoint: it has no trol_gating.pt, no model.safetensors"
    assert hub.downloads == []


def test_a_disk_too_small_is_said_before_any_download(hub: FakeHub, tmp_path: Path) -> None:
    hub.announced_sizes["model-00001-of-00002.safetensors"] = 10**18
    answer = ask(hub, tmp_path, "fetch", REPO)
    assert answer["error"] == "TrolError"
    pattern = r"'BK-Lee/TroL-1\.8B' needs 1000000000\.0 GB more in .*/hf/hub, where [\d.]+ GB are free: "
    assert re.match(pattern, answer["message"])
    assert answer["message"].endswith("make room, or set HF_HOME to a folder on a larger disk")
    assert hub.downloads == []


def test_a_broken_connection_is_taken_up_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.breaks = 1
    directory = Path(ask(hub, tmp_path, "fetch", REPO)["directory"])
    assert hub.breaks == 0
    assert {name: (directory / name).read_bytes() for name in NEEDED} == {name: hub.files[name] for name in NEEDED}


def test_after_an_interrupted_run_only_what_is_missing_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    shard = Path(ask(hub, tmp_path, "fetch", REPO)["directory"]) / "model-00002-of-00002.safetensors"
    shard.resolve().unlink()
    shard.unlink()
    hub.downloads.clear()
    ask(hub, tmp_path, "fetch", REPO)
    assert [name for name, _ in hub.downloads] == [shard.name]
    assert shard.read_bytes() == hub.files[shard.name]


def test_checking_a_repository_finds_what_checking_its_directory_finds_and_leaves_the_weights_there(
    hub: FakeHub, tmp_path: Path
) -> None:
    remote, local = ask(hub, tmp_path, "check", REPO), check_checkpoint(tmp_path / "origin").to_json()
    assert (remote["source"], remote["commit"]) == (REPO, COMMIT)
    for key in ("ok", "model", "tensors", "deviations", "notes"):
        assert remote[key] == json.loads(json.dumps(local[key]))
    assert cached(tmp_path) == {name for name in NEEDED if not name.startswith("model-")}
    assert all(asked for name, asked in hub.downloads if name.startswith("model-"))


def test_checking_without_a_network_uses_the_cached_weights(hub: FakeHub, tmp_path: Path) -> None:
    ask(hub, tmp_path, "fetch", REPO)
    offline, local = ask(hub, tmp_path, "check", REPO, HF_HUB_OFFLINE="1"), check_checkpoint(tmp_path / "origin")
    assert (offline["source"], offline["commit"]) == (REPO, COMMIT)
    assert (offline["deviations"], offline["notes"]) == (local.deviations, local.notes)


def test_checking_a_repository_of_torch_files_says_that_they_must_be_fetched(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {name: content for name, content in hub.files.items() if "safetensors" not in name}
    first = ask(hub, tmp_path, "check", REPO)["deviations"][0]
    assert first == (
        f"'{REPO}' has no safetensors files, whose headers tell shapes without the weights: "
        f"hf download {REPO} --revision {COMMIT} --local-dir DIR and trol-export --check DIR"
    )
