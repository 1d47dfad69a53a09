"""A web server on loopback for one file, with the manners and the faults of real ones."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from diptych.data.published import Archive


@dataclass
class Server:
    """What the server has and does.

    Attributes:
        content: the file.
        headers: headers of each answer with content, such as an ETag.
        knows_range, knows_if_range: whether it does what these headers ask for.
        status: answers this instead of the file, if it is not 0.
        cut_after: answers end after so many bytes, one answer for each number.
        announces: whether answers have their length.
        renames: whether each answer has another ETag, as from servers behind one address.
        asked: headers of the requests.
    """

    content: bytes
    headers: dict[str, str] = field(default_factory=dict)
    knows_range: bool = True
    knows_if_range: bool = True
    status: int = 0
    cut_after: list[int] = field(default_factory=list)
    announces: bool = True
    renames: bool = False
    asked: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    @property
    def ranges(self) -> list[str | None]:
        """Range of each request."""
        return [headers.get("Range") for headers in self.asked]


@contextmanager
def serving(content: bytes, path: str = "/archive.zip") -> Iterator[Server]:
    """A server with the content at each path; its `url` is that of `path`."""
    server = Server(content, {"ETag": '"one"'})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append(dict(self.headers))
            if server.renames:
                server.headers = {"ETag": f'"{len(server.asked)}"'}
            if server.status:
                self.send_error(server.status)
                return
            start, total = self._start(), len(server.content)
            if start > total:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            for name, value in server.headers.items():
                self.send_header(name, value)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            if server.announces:
                self.send_header("Content-Length", str(total - start))
            self.end_headers()
            end = start + server.cut_after.pop(0) if server.cut_after else total
            with suppress(ConnectionError):  # whoever asked may refuse the rest
                self.wfile.write(server.content[start:end])

        def _start(self) -> int:
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            condition = self.headers.get("If-Range")
            fits = condition is None or not server.knows_if_range or condition in server.headers.values()
            return int(asked[1]) if asked and server.knows_range and fits else 0

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_address[1]}{path}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip archive of the files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as content:
        for name, data in files.items():
            content.writestr(name, data)
    return file.getvalue()


def archive_at(server: Server, member: str, unpacked_bytes: int = 1000) -> Archive:
    """What describes the archive of the server."""
    content = server.content
    return Archive(server.url, "Somebody", len(content), hashlib.sha256(content).hexdigest(), member, unpacked_bytes)
