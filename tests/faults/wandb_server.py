"""A stand-in for the Weights & Biases server, on 127.0.0.1: enough for a run, until it is told to hang or to die."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

PROJECT = {"id": "UDox", "name": "newleaf", "entity": {"id": "RTox", "name": "leaf"}}
RUN = {
    "id": "UnVuOjE=",
    "displayName": "leaf",
    "description": "",
    "config": "{}",
    "sweepName": "",
    "historyLineCount": 0,
    "project": PROJECT,
}
ANSWERS: dict[str, Any] = {
    "Viewer": {"viewer": {"id": "VTox", "entity": "leaf", "username": "leaf", "flags": "{}"}},
    "ServerFeaturesQuery": {"serverInfo": {"features": []}},
    "RunResumeStatus": {"model": {**PROJECT, "bucket": None}},
    "UpsertBucket": {"upsertBucket": {}},
    "CreateRunFiles": {"createRunFiles": {"runID": "leaf", "uploadHeaders": [], "files": []}},
}


class WandbServer:
    """Serves while entered. `hang()`: accept and never answer; `die()`: end, and break every connection."""

    def __init__(self) -> None:
        self.steps: list[int] = []  # of the metrics that arrived
        self.began = False  # whether a run is under way
        self.hanging, self.released = False, threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if server.hanging:
                    server.released.wait()
                    self.close_connection = True
                    return
                answer = json.dumps(server.answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_PUT = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        content = json.loads(body or b"{}")
        if "file_stream" in path:
            self.began = True
            history = content.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.steps += [json.loads(line)["_step"] for line in history]
            return {"exitcode": None, "limits": {}}
        name = re.search(r"(?:query|mutation) (\w+)", content.get("query", ""))
        answer = dict(ANSWERS.get(name[1] if name else "", {}))
        if "upsertBucket" in answer:
            bucket = RUN | {"name": content["variables"]["name"]}  # the id that the run has given itself
            answer["upsertBucket"] = {"bucket": bucket, "inserted": True}
        return {"data": answer}

    def __enter__(self) -> WandbServer:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.die()

    def hang(self) -> None:
        self.hanging = True

    def die(self) -> None:
        self.hanging = True  # what comes over connections that are open still gets no answer, but their end
        self.released.set()
        if self.thread.is_alive():
            self.http.shutdown()
            self.thread.join()
        self.http.server_close()
