"""A small Hugging Face hub on 127.0.0.1, so that tests meet the real clients without a network.

It serves a folder: `models/<owner>/<name>/...` and `datasets/<owner>/<name>/...`, one revision
("main", or its commit hash) each. It speaks as much of the hub's HTTP as `huggingface_hub` and
`datasets` ask for: repository information, file trees, path information, and files with ETag,
commit and ranges; and, of a client with a token, new model repositories and commits of small files.
What else is asked for is answered 404, as the hub does.

Run by hand: `python tests/hub_server.py FOLDER` prints the value for HF_ENDPOINT.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(.*))?"
)
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
WRITE = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main")
DATE = "2024-01-01T00:00:00.000Z"


class Hub:
    """The server: `url`, the `requests` so far ("GET /path"), and a `python` that talks to it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.requests: list[str] = []
        self.cut_after: int | None = None
        """Bytes of a file after which the connection is dropped, to test broken transfers."""
        self.gated: set[str] = set()
        """Repositories whose files are for those who asked for access, and nobody has."""
        self.private: set[str] = set()
        """Repositories that were created as private."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Go down: from now on a connection is refused."""
        self._server.shutdown()
        self._server.server_close()

    def downloads(self) -> list[str]:
        """The files whose whole content was asked for, in order."""
        return [
            r.split("/resolve/")[1]
            for r in self.requests
            if r.startswith("GET") and "/resolve/" in r and "bytes=" not in r
        ]

    def python(
        self, code: str, *, cache: Path, offline: bool = False, token: str | None = None
    ) -> str:
        """Run code in a new process whose hub is this one; what it prints, or AssertionError.

        The clients read HF_ENDPOINT and HF_HOME when they are imported, hence a process of its own.
        """
        env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        env |= {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
        env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": str(int(offline))}
        env |= {"HF_TOKEN": token} if token else {}
        env["NO_PROXY"] = env["no_proxy"] = "127.0.0.1"
        env["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).parents[1]), env.get("PYTHONPATH", "")]
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def repository(self, kind: str, name: str) -> Path | None:
        """The folder of a repository, if it has one."""
        folder = self.folder / kind / name
        return folder if folder.is_dir() and ".." not in name else None


def commit_of(repository: Path) -> str:
    """A hash of all paths and contents, which stands for the commit."""
    digest = hashlib.sha1()
    for path in files_of(repository):
        digest.update(path.encode() + b"\0" + (repository / path).read_bytes())
    return digest.hexdigest()


def files_of(repository: Path) -> list[str]:
    """Paths of all files, sorted, with forward slashes."""
    return sorted(
        p.relative_to(repository).as_posix() for p in repository.rglob("*") if p.is_file()
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_) -> None:
        pass  # kept in hub.requests instead

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        part = f" {self.headers['Range']}" if self.headers.get("Range") else ""
        self.hub.requests.append(f"{self.command} {path}{part}")
        if path == "/api/repos/create" or WRITE.fullmatch(path):
            self._answer_write(path, body)
        elif path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif api := API.fullmatch(path):
            self._answer_api(body, *api.groups())
        elif file := FILE.fullmatch(path):
            kind, name, revision, inner = file.groups()
            self._answer_file("datasets" if kind else "models", name, revision, inner)
        else:
            self._fail("EntryNotFound", f"nothing at {path}")

    def _find(self, kind: str, name: str, revision: str | None) -> tuple[Path, str] | None:
        """The repository's folder and commit; or None, after answering what is wrong."""
        repository = self.hub.repository(kind, name)
        if repository is None:
            return self._fail("RepoNotFound", "Repository not found")
        commit = commit_of(repository)
        if revision not in (None, "main", commit):
            return self._fail("RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit

    def _answer_api(
        self,
        body: bytes,
        kind: str,
        name: str,
        what: str | None,
        revision: str | None,
        under: str | None,
    ) -> None:
        if (found := self._find(kind, name, revision)) is None:
            return
        repository, commit = found
        entries = _entries(repository)
        if what == "tree":
            prefix = (under or "").strip("/")
            recursive = (
                "true" in parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower()
            )
            inside = [e for e in entries if not prefix or e["path"].startswith(prefix + "/")]
            depth = prefix.count("/") + 1 if prefix else 0
            self._send_json([e for e in inside if recursive or e["path"].count("/") == depth])
        elif what == "paths-info":
            wanted = _paths(body)
            self._send_json([e for e in entries if e["path"] in wanted])
        else:
            siblings = [{"rfilename": e["path"]} for e in entries if e["type"] == "file"]
            info = {"_id": "0" * 24, "id": name, "sha": commit, "siblings": siblings, "tags": []}
            info |= {
                "private": False,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
            }
            self._send_json(info | {"lastModified": DATE, "createdAt": DATE})

    def _answer_write(self, path: str, body: bytes) -> None:
        if "Bearer" not in (self.headers.get("Authorization") or ""):
            self._fail("", "Invalid username or password.", status=401)
        elif write := WRITE.fullmatch(path):
            name, what = write.groups()
            if (found := self._find("models", name, None)) is None:
                return
            if what == "preupload":
                sent = [file["path"] for file in json.loads(body)["files"]]
                plain = {"uploadMode": "regular", "shouldIgnore": False}
                self._send_json({"files": [{"path": file, **plain} for file in sent]})
            else:
                _commit(found[0], body)
                oid = commit_of(found[0])
                self._send_json({"commitUrl": f"{self._url(name)}/commit/{oid}", "commitOid": oid})
        else:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if self.hub.repository("models", name) is not None:
                there = {"error": "You already created this model repo", "url": self._url(name)}
                self._send(409, json.dumps(there).encode(), {})
                return
            (self.hub.folder / "models" / name).mkdir(parents=True)
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(name)
            self._send_json({"url": self._url(name)})

    def _url(self, name: str) -> str:
        return f"{self.hub.url}/{name}"

    def _answer_file(self, kind: str, name: str, revision: str, inner: str) -> None:
        if (found := self._find(kind, name, revision)) is None:
            return
        repository, commit = found
        if name in self.hub.gated:
            self._fail("GatedRepo", "Access to this model is restricted", status=403)
            return
        if inner not in files_of(repository):
            self._fail("EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        content = (repository / inner).read_bytes()
        headers = {
            "ETag": f'"{_blob_id(content)}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            self._send(200, content, headers)
            return
        first, last = asked.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= len(content):
            self._send(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self._send(206, content[start:end], headers)

    def _send_json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _fail(
        self, code: str, message: str, headers: dict[str, str] | None = None, *, status: int = 404
    ) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message} | (headers or {})
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.cut_after if "ETag" in headers else None
        self.wfile.write(body[:cut])
        if cut is not None and cut < len(body):
            self.close_connection = True


def _entries(repository: Path) -> list[dict]:
    """Files and folders as the hub's tree lists them."""
    files = files_of(repository)
    folders = sorted({p.as_posix() for f in files for p in Path(f).parents if p != Path(".")})
    listed = [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in folders]
    for path in files:
        content = (repository / path).read_bytes()
        listed.append(
            {"type": "file", "path": path, "oid": _blob_id(content), "size": len(content)}
        )
    return listed


def _commit(repository: Path, body: bytes) -> None:
    """Write and delete what the lines of a commit say."""
    for line in body.splitlines():
        operation = json.loads(line)
        value = operation["value"]
        if operation["key"] == "header":
            continue
        path = repository / value["path"]
        assert path.is_relative_to(repository)
        assert ".." not in value["path"]
        if operation["key"] == "file":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(value["content"]))
        elif operation["key"] == "deletedFile":
            path.unlink()
        else:
            raise AssertionError(f"commits with {operation['key']} are not served")


def _paths(body: bytes) -> list[str]:
    """The paths of a paths-info request, which comes as JSON or as a form."""
    try:
        paths = json.loads(body)["paths"]
    except ValueError:
        paths = parse_qs(body.decode()).get("paths", [])
    return [paths] if isinstance(paths, str) else paths


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


if __name__ == "__main__":
    server = Hub(Path(sys.argv[1]))
    print(f"HF_ENDPOINT={server.url}", flush=True)
    while True:
        time.sleep(3600)
