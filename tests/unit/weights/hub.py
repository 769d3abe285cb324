"""A hub on loopback: what huggingface_hub asks of the real one, with faults on demand."""

import hashlib
import json
import re
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REVISION = "0123456789abcdef0123456789abcdef01234567"
"""Any other commit is not known here, `main` stands at this one."""
PIECE = 1 << 20


@dataclass
class Fault:
    """Happens to the next `times` answers for one file; `pause` in seconds, before the connection is dropped."""

    content: bytes | None = None
    drop_at: int | None = None
    pause: float = 0.0
    times: int = 1


@dataclass
class LoopbackHub:
    """Repositories by name, each with its files; `asked` notes the offset of every GET of a file."""

    repositories: dict[str, dict[str, bytes]]
    faults: dict[str, Fault] = field(default_factory=dict)
    asked: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    sent: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __enter__(self) -> "LoopbackHub":
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def reset(self) -> None:
        self.faults.clear(), self.asked.clear(), self.sent.clear()


class Handler(BaseHTTPRequestHandler):
    """`resolve` redirects to a path outside the repository, as the real hub does for large files."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        path = re.sub("^http://[^/]+", "", self.path).split("?")[0]
        if match := re.fullmatch("/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self.answer_model(match[1], match[2] or "main")
        elif match := re.fullmatch("/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            known = match[2] == REVISION and match[3] in self.hub.repositories.get(match[1], {})
            missing = {"X-Error-Code": "EntryNotFound" if match[2] == REVISION else "RevisionNotFound"}
            self.reply(302, b"", Location=f"/store/{match[1]}/{match[3]}") if known else self.reply(404, b"", **missing)
        elif match := re.fullmatch("/store/([^/]+/[^/]+)/(.+)", path):
            self.send_file(match[2], self.hub.repositories[match[1]][match[2]])
        else:
            self.reply(404, b"")

    def answer_model(self, repository: str, revision: str) -> None:
        files = self.hub.repositories.get(repository)
        if files is None or revision not in ("main", REVISION):
            self.reply(404, b"", **{"X-Error-Code": "RepoNotFound"})
            return
        siblings = [self.sibling(name, content) for name, content in files.items()]
        info = {"id": repository, "sha": REVISION, "siblings": siblings, "cardData": {"license": "openrail++"}}
        self.reply(200, json.dumps(info).encode())

    @staticmethod
    def sibling(name: str, content: bytes) -> dict:
        lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        entry = {"rfilename": name, "size": len(content)}
        return {**entry, "lfs": lfs} if name.endswith(".safetensors") else entry

    def send_file(self, name: str, content: bytes) -> None:
        start = int(re.match("bytes=([0-9]+)-", self.headers.get("Range", "bytes=0-"))[1])
        self.hub.asked[name].append(start)
        fault = self.hub.faults.get(name, Fault())
        if fault.times == 0:
            fault = Fault()
        fault.times -= 1
        content = content if fault.content is None else fault.content
        if start and start >= len(content):
            self.reply(416, b"")
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end = len(content) if fault.drop_at is None else fault.drop_at
        for at in range(start, end, PIECE):
            piece = content[at : min(at + PIECE, end)]
            self.wfile.write(piece)
            self.hub.sent[name] += len(piece)
        time.sleep(fault.pause)
        self.close_connection = fault.drop_at is not None

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": REVISION, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
