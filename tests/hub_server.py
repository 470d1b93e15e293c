"""A stand-in for the hub's HTTP interface on loopback: it makes repositories and takes commits."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_tests"


@dataclass
class Hub:
    """What was sent: files by their path, the commits' messages, the repositories as they were asked for."""

    address: str = ""
    repositories: list[dict[str, Any]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    cards: list[str] = field(default_factory=list)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Runs it on a free port."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, value: Any, status: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def do_GET(self) -> None:
            if "/tree/" in self.path:
                self.answer([])
            else:  # the repository itself
                self.answer({"id": "me/tiny", "sha": "0" * 40, "siblings": []})

        def do_POST(self) -> None:
            body = self.read_body()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer({"error": "Invalid username or password."}, 401)
            elif self.path == "/api/repos/create":
                hub.repositories.append(json.loads(body))
                values = hub.repositories[-1]
                name = "/".join(filter(None, [values.get("organization"), values["name"]]))
                self.answer({"url": f"{hub.address}/{name}", "name": name, "id": name})
            elif self.path == "/api/validate-yaml":
                hub.cards.append(json.loads(body)["content"])
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                files = [
                    {"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for name in names
                ]
                self.answer({"files": files})
            elif "/commit/" in self.path:
                for line in body.decode().splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "header":
                        hub.messages.append(entry["value"]["summary"])
                    elif entry["key"] == "file":
                        hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                url = f"{hub.address}/me/tiny/commit/{'1' * 40}"
                self.answer({"success": True, "commitUrl": url, "commitOid": "1" * 40, "hookOutput": ""})
            else:
                self.answer({"error": f"not here: {self.path}"}, 404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
