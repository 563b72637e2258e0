"""A web server on this machine that misbehaves on request."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """What the server answers for one path."""

    body: bytes = b""
    kind: str = "application/octet-stream"
    failures: list[int] = field(default_factory=list)  # statuses answered first, in this order
    cuts: list[int] = field(default_factory=list)  # bytes sent by the next answers before the connection breaks
    headers: dict[str, str] = field(default_factory=dict)
    etag: str | None = '"1"'
    ranges: bool = True  # whether parts of the body can be asked for
    hang: threading.Event | None = None  # set by the test: sending goes on after `cuts`


@dataclass
class Web:
    url: str
    pages: dict[str, Page] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # (path, headers)

    def add(self, path: str, body: bytes = b"", **how) -> str:
        self.pages[path] = Page(body, **how)
        return self.url + path

    def asked(self, name: str) -> list[str | None]:
        """A header of all requests so far."""
        return [headers.get(name) for _, headers in self.requests]


@contextmanager
def serve() -> Iterator[Web]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.web = Web(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        web = self.server.web
        web.requests.append((self.path, dict(self.headers)))
        page = web.pages.get(self.path, Page(failures=[404] * 99))
        if page.failures:
            self._answer(page.failures.pop(0), b"<html>no</html>", page.headers | {"Content-Type": "text/html"})
        else:
            self._file(page)

    def _file(self, page: Page):
        headers = page.headers | {"Content-Type": page.kind} | ({"ETag": page.etag} if page.etag else {})
        start = self._start(page)
        if start == 0:
            self._answer(200, page.body, headers, page)
        elif start >= len(page.body):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(page.body)}"})
        else:
            place = f"bytes {start}-{len(page.body) - 1}/{len(page.body)}"
            self._answer(206, page.body[start:], headers | {"Content-Range": place}, page)

    def _start(self, page: Page) -> int:
        wanted = page.ranges and self.headers.get("Range") and self.headers.get("If-Range") == page.etag
        return int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if wanted else 0

    def _answer(self, status: int, body: bytes, headers: dict[str, str], page: Page | None = None):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if page and page.cuts:
            self.wfile.write(body[: page.cuts.pop(0)])
            self.wfile.flush()
            if page.hang:
                page.hang.wait(20)
            self.connection.close()
        else:
            self.wfile.write(body)

    def log_message(self, *_):
        pass
