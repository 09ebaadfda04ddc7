"""A Hub on the loopback interface with one data set: the few answers that huggingface_hub and datasets ask for."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "1234567890abcdef1234567890abcdef12345678"


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves the files below ``root`` as owner/name."""

    root: Path
    asked: list[str]
    tokens: set[str | None]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(path)
        self.tokens.add(self.headers.get("Authorization"))
        if "/owner/name" not in path:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        rest = path.partition("/owner/name")[2]
        if match := re.fullmatch(r"/resolve/([^/]+)/(.+)", rest):
            return self.file(match[2])
        if re.fullmatch(r"(/revision/[^/]+)?", rest):
            siblings = [{"rfilename": each["path"]} for each in self.tree()]
            return self.document({"id": "owner/name", "sha": COMMIT, "siblings": siblings, "private": False})
        if match := re.fullmatch(r"/tree/[^/]+/?(.*)", rest):
            return self.document(self.listing(match[1], "recursive=true" in self.path.lower()))
        return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.asked.append(f"{self.path} {body}")
        wanted = re.findall(r"paths=([^&]+)", body) or json.loads(body or "{}").get("paths", [])
        there = {each["path"]: each for each in self.tree()}
        self.document([there[unquote(name)] for name in wanted if unquote(name) in there])

    def listing(self, folder: str, recursive: bool) -> list[dict[str, Any]]:
        """What lies in a folder; of what lies deeper the folders only, unless ``recursive``."""
        found: dict[str, dict[str, Any]] = {}
        start = f"{folder}/" if folder else ""
        for each in self.tree():
            rest = each["path"].removeprefix(start)
            if not each["path"].startswith(start):
                continue
            if "/" in rest and not recursive:
                path = start + rest.partition("/")[0]
                found[path] = {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
            else:
                found[each["path"]] = each
        return list(found.values())

    def tree(self) -> list[dict[str, Any]]:
        files = [path for path in sorted(self.root.rglob("*")) if path.is_file()]
        return [
            {
                "type": "file",
                "path": str(path.relative_to(self.root)),
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for path in files
        ]

    def file(self, name: str) -> None:
        path = self.root / name
        if not path.is_file():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return self.answer(200, content, headers)

    def document(self, content: Any) -> None:
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def serving(root: Path) -> Iterator[tuple[type[Hub], str]]:
    """The Hub's address while it runs."""
    handler = type("Handler", (Hub,), {"root": root, "asked": [], "tokens": set()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield handler, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
