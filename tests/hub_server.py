"""A server on loopback that speaks as much of the Hugging Face Hub's file API as a download needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted."}


@dataclass
class Repository:
    """files: by name, of each commit. refs: branches and tags to commits. gated: only the list of files is public."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def push(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A commit that holds these files alone; its name."""
        content = repr(sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items()))
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits[commit] = files
        self.refs[branch] = commit
        return commit

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.refs.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


class Hub(ThreadingHTTPServer):
    """repositories: by owner/name. requests: what was asked for, as "GET /path". status: of each answer, 0: as it
    should be. cut: break the connection after so many bytes of a file, once. large: files of so many bytes are kept by
    Git LFS, that is, on another server and by their SHA-256. held: waited for in the midst of a file."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.agents: set[str] = set()
        self.status = 0
        self.cut = 0
        self.large = 1 << 40
        self.held: threading.Event | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, files: dict[str, bytes]) -> Repository:
        repository = self.repositories[name] = Repository()
        repository.push(files)
        return repository

    def downloads(self) -> list[str]:
        """Names of the files whose content was sent, sorted."""
        found = [FILE.fullmatch(line.removeprefix("GET ")) for line in self.requests if line.startswith("GET ")]
        return sorted(match[3] for match in found if match)

    def large_files(self) -> dict[str, bytes]:
        """By SHA-256."""
        trees = [files for repository in self.repositories.values() for files in repository.commits.values()]
        contents = [data for files in trees for data in files.values() if len(data) >= self.large]
        return {hashlib.sha256(data).hexdigest(): data for data in contents}


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        self.server.agents.add(self.headers.get("User-Agent", ""))
        if self.server.status:
            self.refuse(self.server.status)
        elif match := API.fullmatch(path):
            self.describe(match[1], match[2] or "main")
        elif match := FILE.fullmatch(path):
            self.resolve(match[1], match[2], match[3])
        elif path.startswith("/lfs/"):
            data = self.server.large_files()[path.removeprefix("/lfs/")]
            self.send(data, {"ETag": f'"{hashlib.md5(data).hexdigest()}"'})  # as other stores name it
        else:
            self.refuse(404)

    def found(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.server.repositories.get(name)
        if repository is None:  # without a token the hub does not tell a private model from none
            self.refuse(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return None
        files = repository.files(revision)
        if files is None:
            self.refuse(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"})
        return files

    def describe(self, name: str, revision: str) -> None:
        found = self.found(name, revision)
        if found is None:
            return
        siblings = [describe_file(file, data, len(data) >= self.server.large) for file, data in found[1].items()]
        body = json.dumps({"id": name, "modelId": name, "sha": found[0], "siblings": siblings, "tags": []}).encode()
        self.answer(200, {"Content-Type": "application/json"}, body)

    def resolve(self, name: str, revision: str, file: str) -> None:
        found = self.found(name, revision)
        if found is None:
            return
        commit, files = found
        if self.server.repositories[name].gated:
            return self.refuse(401, GATED)
        if file not in files:
            return self.refuse(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        data = files[file]
        if len(data) >= self.server.large:
            sha256 = hashlib.sha256(data).hexdigest()
            headers = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
            return self.answer(
                302, {**headers, "Location": f"http://localhost:{self.server.server_port}/lfs/{sha256}"}, b""
            )
        self.send(data, {"ETag": f'"{blob_name(data)}"', "X-Repo-Commit": commit})

    def send(self, data: bytes, headers: dict[str, str]) -> None:
        """A file, or the rest of one."""
        status, headers = 200, {**headers, "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(wanted[1])
            self.server.ranges.append(self.headers["Range"])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        self.answer(status, headers, data)

    def refuse(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.answer(status, headers or {}, b"")

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            cut, is_file = self.server.cut, "ETag" in headers
            if cut and is_file and cut < len(body):
                self.server.cut = 0
                self.wfile.write(body[:cut])
                self.wfile.flush()
                self.close_connection = True
            elif self.server.held is not None and is_file:
                self.wfile.write(body[: len(body) // 2])
                self.server.held.wait(30)
            else:
                self.wfile.write(body)


def blob_name(data: bytes) -> str:
    """As git has it."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def describe_file(name: str, data: bytes, is_large: bool) -> dict[str, Any]:
    lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    blob = blob_name(b"pointer to " + data if is_large else data)
    return {"rfilename": name, "size": len(data), "blobId": blob, **({"lfs": lfs} if is_large else {})}


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
