"""What a user's name for a model leads to: local folders, and a Hub of this test's own on 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gpt.model.find import HubModel, find_model, wanted
from gpt.options import UserError

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = "a" * 40, "b" * 40
WEIGHTS = os.urandom(1 << 20) * 24  # huggingface_hub writes pieces of 10 MB, and goes on after the last whole one
SAFE = {
    "config.json": b'{"model_type": "gpt2"}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"old",
    "vocab.json": b"{}",
    "README.md": b"read",
    "onnx/model.safetensors": b"no",
    "flax_model.msgpack": b"no",
}
PICKLED = {"config.json": b"{}", "pytorch_model.bin": b"weights", "vocab.txt": b"a"}
SHARDED = {
    "config.json": b"{}",
    "model.safetensors.index.json": b"{}",
    "model-00001-of-00002.safetensors": b"1",
    "model-00002-of-00002.safetensors": b"2",
    "consolidated.safetensors": b"no",
}
# Repository → commit → files.
REPOSITORIES: dict[str, dict[str, dict[str, bytes]]] = {
    "openai-community/gpt2": {NEW: SAFE, OLD: SAFE | {"config.json": b'{"old": 1}'}},
    "uer/pickled": {NEW: PICKLED},
    "big/sharded": {NEW: SHARDED},
    "big/empty": {NEW: {"config.json": b"{}"}},
    "big/gated": {NEW: SAFE},
}
# Its main moves from the old commit to the new one once it has been asked about.
MOVING = {OLD: SAFE, NEW: SHARDED}
REPOSITORIES["big/moving"] = MOVING
REVISIONS = {"main": NEW, "v1": OLD, "refs/pr/1": OLD, NEW: NEW, OLD: OLD}


class FakeHub(BaseHTTPRequestHandler):
    """As much of https://huggingface.co as huggingface_hub asks for: information, tree, files in ranges."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path, self.headers.get("Range")))
        path = self.path.partition("?")[0].replace("%2F", "/")
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        repository = found[1] if found else ""
        revision = (api[3] if api else file[2] if file else None) or "main"
        if REPOSITORIES.get(repository) is MOVING and revision == "main":
            asked = sum("/models/big/moving" in path and "tree" not in path for _, path, _ in self.server.asked)
            revision = OLD if asked == 1 else NEW
        if repository not in REPOSITORIES:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        files = REPOSITORIES[repository].get(REVISIONS.get(revision, ""))
        if files is None:
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if file:
            if repository == "big/gated":
                return self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            return self.send_content(files[file[3]], REVISIONS[revision])
        if api and api[2] == "tree":
            return self.answer(200, [self.entry(name, content) for name, content in files.items()])
        siblings = [{"rfilename": name} for name in files]
        return self.answer(200, {"id": repository, "sha": REVISIONS[revision], "siblings": siblings})

    @staticmethod
    def entry(name: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def send_content(self, content: bytes, commit: str) -> None:
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        breaks = self.server.breaks > 0 and content is WEIGHTS and self.command == "GET"
        self.server.breaks -= breaks
        if breaks and start:
            return self.answer(503, b"", {})
        return self.answer(206 if start else 200, content[start:], headers, half=breaks)

    def answer(self, status: int, body: object, headers: dict[str, str] | None = None, half: bool = False) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if half else content)
        self.close_connection = half

    def log_message(self, *_: object) -> None:
        pass


class Hub(ThreadingHTTPServer):
    breaks = 0  # how often it breaks off half-way through the weights, or refuses to go on with them

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeHub)
        self.asked: list[tuple[str, str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


FIND = """
import sys
from gpt.model.find import find_model
from gpt.options import UserError
for name in sys.argv[1:]:
    try:
        print(find_model(name, "init_from"))
    except UserError as error:
        print("UserError:", str(error).replace("\\n", " "))
"""


def find(home: Path, address: str, *names: str) -> tuple[list[str], str]:
    """What find_model gives for each name in a process of its own, and its standard error."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", FIND, *names]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines(), run.stderr


def test_models_are_downloaded_once_and_pinned(hub: Hub, tmp_path: Path) -> None:
    names = ["gpt2", "openai-community/gpt2", "gpt2@v1", f"gpt2@{OLD}", "gpt2@refs/pr/1", "uer/pickled", "big/sharded"]
    folders, said = find(tmp_path, hub.address, *names)
    assert [Path(folder).name for folder in folders] == [NEW, NEW, OLD, OLD, OLD, NEW, NEW]
    files = [sorted(path.name for path in Path(folder).iterdir()) for folder in folders]
    assert files[0] == ["config.json", "model.safetensors", "vocab.json"]
    assert files[5] == sorted(PICKLED)
    assert files[6] == sorted(set(SHARDED) - {"consolidated.safetensors"})
    assert (Path(folders[0]) / "model.safetensors").read_bytes() == WEIGHTS
    assert (Path(folders[2]) / "config.json").read_bytes() == b'{"old": 1}'
    assert [line for line in said.splitlines() if line.startswith("Downloading")] == [
        "Downloading openai-community/gpt2 from the Hugging Face Hub (3 files)",
        "Downloading openai-community/gpt2@v1 from the Hugging Face Hub (3 files)",
        "Downloading uer/pickled from the Hugging Face Hub (3 files)",
        "Downloading big/sharded from the Hugging Face Hub (4 files)",
    ]
    assert sum(command == "GET" and path.endswith("model.safetensors") for command, path, _ in hub.asked) == 1
    # Without network, the cache gives what it has, pinned or not, and what it lacks is explained.
    hub.shutdown()
    hub.server_close()
    again, said = find(tmp_path, hub.address, "gpt2", "gpt2@v1", "big/sharded", "gpt2-xl", "gpt2@v9")
    assert again[:3] == [folders[0], folders[2], folders[6]]
    assert "Downloading" not in said
    for part in ("init_from=gpt2-xl", "openai-community/gpt2-xl", hub.address, str(tmp_path), "HF_HOME", "its folder"):
        assert part in again[3]
    assert "openai-community/gpt2@v9" in again[4]


def test_what_is_fetched_is_what_was_listed(hub: Hub, tmp_path: Path) -> None:
    (folder,), _ = find(tmp_path, hub.address, "big/moving")
    assert Path(folder).name == OLD
    assert sorted(path.name for path in Path(folder).iterdir()) == ["config.json", "model.safetensors", "vocab.json"]
    references = Path(folder).parents[1] / "refs"
    assert {path.name: path.read_text() for path in references.iterdir() if path.name != OLD} == {"main": OLD}
    hub.shutdown()
    hub.server_close()
    assert find(tmp_path, hub.address, "big/moving", f"big/moving@{OLD}")[0] == [folder, folder]


def test_a_newer_commit_that_does_not_arrive_leaves_the_earlier_one_in_use(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,), _ = find(tmp_path, hub.address, "uer/pickled")
    monkeypatch.setitem(REVISIONS, "main", OLD)
    monkeypatch.setitem(REPOSITORIES, "uer/pickled", {OLD: SAFE})
    hub.breaks = 10
    assert find(tmp_path, hub.address, "uer/pickled")[0] == [folder]


def test_a_broken_transfer_goes_on_where_it_broke_off(hub: Hub, tmp_path: Path) -> None:
    hub.breaks = 1
    (folder,), _ = find(tmp_path, hub.address, "gpt2")
    assert (Path(folder) / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [part for command, path, part in hub.asked if command == "GET" and "model.safetensors" in path]
    assert len(ranges) == 2
    assert re.fullmatch(r"bytes=[1-9]\d*-", ranges[1] or "")


def test_after_a_broken_download_the_second_call_completes_it(hub: Hub, tmp_path: Path) -> None:
    hub.breaks = 10
    (answer,), _ = find(tmp_path, hub.address, "gpt2")
    assert answer.startswith("UserError: init_from=gpt2")
    assert "not whole in the cache" in answer
    hub.breaks, before = 0, len(hub.asked)
    (folder,), said = find(tmp_path, hub.address, "gpt2")
    assert (Path(folder) / "model.safetensors").read_bytes() == WEIGHTS
    assert said.count("Downloading") == 1
    fetched = [path for command, path, _ in hub.asked[before:] if command == "GET" and "/resolve/" in path]
    assert [path.rpartition("/")[2] for path in fetched] == ["model.safetensors"]  # the others were finished


def test_what_the_hub_refuses_is_explained(hub: Hub, tmp_path: Path) -> None:
    answers, _ = find(tmp_path, hub.address, "no/such", "gpt2@v9", "big/gated", "big/empty", "a/..b--", "x/y@../z")
    for answer, message in zip(
        answers,
        (
            "init_from=no/such: there is no such folder, and no model no/such on the Hub",
            "init_from=gpt2@v9: openai-community/gpt2 has no branch, tag or commit v9",
            "init_from=big/gated: big/gated is gated.*hf auth login",
            "init_from=big/empty: .* neither model.safetensors nor pytorch_model.bin",
            "there is no such folder",
            "there is no such folder",
        ),
        strict=True,
    ):
        assert re.search(message, answer), answer


def test_paths_are_never_asked_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    names = ["./a/b", "/a/b", "~/b", "a/b/c", "a\\b", "a/b/", "mine", "..", "../b", "", "a//b", "a/b c", "~nobody/a"]
    answers, _ = find(tmp_path, hub.address, *names)
    assert len(answers) == len(names)
    assert all(answer.startswith("UserError") for answer in answers)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gpt2", HubModel("openai-community/gpt2")),
        ("gpt2-xl@main", HubModel("openai-community/gpt2-xl", "main")),
        ("org/name", HubModel("org/name")),
        ("org/na.me-1@refs/pr/3", HubModel("org/na.me-1", "refs/pr/3")),
        ("gpt3", None),
        ("org/name@", None),
        (".org/name", None),
    ],
)
def test_names_of_the_hub(name: str, meant: HubModel | None) -> None:
    assert HubModel.parse(name) == meant


def test_adapters_are_fetched_whole() -> None:
    files = ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "training_args.bin", "README.md"]
    assert wanted(files) == files[:3]


def test_a_folder_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("gpt2", "org/name@v1", "run/checkpoints/best", "run/checkpoints/step-1", "lora"):
        Path(folder).mkdir(parents=True)
    for file in ("gpt2/config.json", "org/name@v1/config.json", "run/checkpoints/best/config.json"):
        Path(file).touch()
    Path("lora/adapter_config.json").touch()
    for name in ("gpt2", "org/name@v1", "lora"):
        assert find_model(name) == Path(name)
    assert find_model("run") == find_model("run/checkpoints") == Path("run/checkpoints/best")


def test_find_model_says_what_is_wrong_with_a_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    for name, message in (
        ("none", "no such folder"),
        ("file", "a file"),
        ("empty", "nor config.json nor adapter_"),
        ("young", "yet"),
    ):
        with pytest.raises(UserError, match=f"^init_from={tmp_path / name}: .*{message}"):
            find_model(str(tmp_path / name), "init_from")


def test_a_mistyped_run_is_told_from_a_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`runs/text-mni` could be an id."""
    (tmp_path / "runs" / "text-mini").mkdir(parents=True)
    (tmp_path / "runs" / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("runs/text-mni", "./runs/text-mni"):
        with pytest.raises(UserError, match=r"; did you mean checkpoint=(\./)?runs/text-mini\?$"):
            find_model(name)
    with pytest.raises(UserError) as caught:
        find_model("runs/entirely-different")
    assert "did you mean" not in str(caught.value)
