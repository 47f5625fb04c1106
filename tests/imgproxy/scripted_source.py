"""The source server of the recordings: what it sends for which name."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"><rect width="10" height="10"/></svg>'
SHORT_BYTES = 1000


@contextmanager
def scripted_source(photo: Path, headers_by_name: dict[str, dict[str, str]]) -> Iterator[int]:
    """Serves on a free loopback port, which it yields."""
    image = photo.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path.partition("?")[0].lstrip("/")
            match name:
                case "404.png" | "500.png":
                    self._send(int(name[:3]), "text/plain", b"scripted")
                case "text.png":
                    self._send(200, "text/plain", b"This is no image.")
                case "html.png":
                    self._send(200, "text/html", b"<html><body>This is no image.</body></html>")
                case "short.png":
                    self._send(200, "image/png", image, sent=SHORT_BYTES)
                case "svg.svg":
                    self._send(200, "image/svg+xml", SVG)
                case _:
                    self._send_photo(headers_by_name.get(name.removesuffix(".png")))

        def _send_photo(self, fields: dict[str, str] | None) -> None:
            if fields is None:
                self._send(404, "text/plain", b"not scripted")
                return
            validators = {"If-None-Match": fields.get("ETag"), "If-Modified-Since": fields.get("Last-Modified")}
            is_known = any(value and self.headers[name] == value for name, value in validators.items())
            self._send(304 if is_known else 200, "image/png", b"" if is_known else image, fields)

        def _send(
            self,
            status: int,
            media_type: str,
            body: bytes,
            fields: dict[str, str] | None = None,
            sent: int | None = None,
        ) -> None:
            self.send_response(status)
            if status != 304:
                self.send_header("Content-Type", media_type)
                self.send_header("Content-Length", str(len(body)))
            for name, value in (fields or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[:sent])
            self.close_connection = sent is not None

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
