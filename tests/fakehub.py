"""A hub on this machine: the few addresses of huggingface.co that loading a data set asks for.

Revisions are folders of files; the newest is main.
"""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse


def sha(name):
    return hashlib.sha1(str(name).encode()).hexdigest()


@contextmanager
def hub(name, revisions):
    """Serve the data set `name`; `revisions` is a list of folders, oldest first. Yields (address, commits, asked)."""
    commits = {sha(folder): folder for folder in revisions}
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, content, status=200, **headers):
            self.send_response(status)
            for key, value in {"Content-Length": len(content), **headers}.items():
                self.send_header(key.replace("_", "-"), str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def files(self, commit):
            folder = commits[commit]
            return sorted(f for f in folder.rglob("*") if f.is_file()), folder

        def entry(self, file, folder):
            if file.is_dir():
                return {"type": "directory", "oid": sha(file), "size": 0, "path": str(file.relative_to(folder))}
            oid = hashlib.sha1(file.read_bytes()).hexdigest()
            return {"type": "file", "oid": oid, "size": file.stat().st_size, "path": str(file.relative_to(folder))}

        def do_GET(self):
            path = unquote(urlparse(self.path).path)
            asked.append((self.command, path))
            missing = {"status": 404, "X_Error_Code": "RepoNotFound"}
            body = b""
            if length := int(self.headers.get("Content-Length") or 0):
                body = self.rfile.read(length)
            for start in (f"/api/datasets/{name}", f"/datasets/{name}"):
                if path == start or path.startswith(start + "/"):
                    rest = path[len(start) :].strip("/").split("/")
                    break
            else:
                return self.answer(b"{}", **missing)
            action, revision = [*rest, "", ""][:2]
            revision = revision or "main"
            commit = list(commits)[-1] if revision == "main" else revision
            if commit not in commits:
                return self.answer(b"{}", status=404, X_Error_Code="RevisionNotFound")
            files, folder = self.files(commit)
            if action in ("", "revision"):
                siblings = [{"rfilename": str(f.relative_to(folder))} for f in files]
                info = {"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []}
                return self.answer(json.dumps(info).encode(), Content_Type="application/json")
            if action == "tree":
                place = folder / "/".join(rest[2:])
                if not place.is_dir():
                    return self.answer(b"{}", status=404, X_Error_Code="EntryNotFound")
                deep = parse_qs(urlparse(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
                entries = [self.entry(f, folder) for f in sorted(place.rglob("*") if deep else place.iterdir())]
                return self.answer(json.dumps(entries).encode(), Content_Type="application/json")
            if action == "paths-info":
                try:
                    wanted = json.loads(body)["paths"]
                except ValueError:
                    wanted = parse_qs(body.decode())["paths"]
                entries = [self.entry(f, folder) for f in files if str(f.relative_to(folder)) in wanted]
                return self.answer(json.dumps(entries).encode(), Content_Type="application/json")
            if action == "resolve":
                file = folder / "/".join(rest[2:])
                if not file.is_file():
                    return self.answer(b"", status=404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                oid = self.entry(file, folder)["oid"]
                return self.answer(file.read_bytes(), ETag=f'"{oid}"', X_Repo_Commit=commit)
            self.answer(b"{}", status=404)

        do_HEAD = do_POST = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", list(commits), asked
    finally:
        server.shutdown()
        server.server_close()
