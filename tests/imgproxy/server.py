#!/usr/bin/env python3
"""A stand-in for imgproxy 4.0.12: the part of it that the tests and the local stack need. Never shipped."""

import asyncio
import hmac
import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote, urlsplit

import aiohttp
from aiohttp import web

import headers
import paths
from config import Config, ConfigError
from formats import Format, detect
from options import Options, parse
from refusal import Refusal, unreachable
from render import VERSIONS, Rendered, render
from sources import Headers, Source, fetch

PINNED = {"pyvips": "3.2.0", "libvips": "8.18.7", "aiohttp": "3.14.5"}
RENDER_WORKERS = 2
STOP_SECONDS = 10
MAX_LINE_BYTES = 64 * 1024
# What Go's HTTP server says before imgproxy sees the request.
BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request"
)
# Bytes of a source that break off inside the first block are lost before the type is looked at.
SOURCE_BLOCK_BYTES = 4096
RAW_REQUEST_HEADERS = ("If-None-Match", "If-Modified-Since", "Accept-Encoding", "Range")
RAW_RESPONSE_HEADERS = ("Content-Type", "Content-Encoding", "Content-Range", "Accept-Ranges", "Last-Modified", "ETag")
LANDING_PAGE = b"<!DOCTYPE html><title>imgproxy stand-in</title><p>The stand-in for imgproxy is running.</p>\n"
PREFERENCE = ("jxl", "avif", "webp")


class StandIn:
    def __init__(self, config: Config, fallback: tuple[bytes, Format] | None) -> None:
        self.config = config
        self.fallback = fallback
        self.renderers = ThreadPoolExecutor(RENDER_WORKERS, "render")

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        began = time.monotonic()
        why = ""
        try:
            response = await self._route(request)
        except Refusal as refusal:
            why = refusal.why
            response = self._text(request, refusal.status, refusal.text)
        except Exception as error:  # noqa: BLE001 - imgproxy answers a panic the same way
            why = repr(error)
            response = self._text(request, 500, "Internal error")
        if not request.path.endswith("/health"):
            self._log(request, response.status, time.monotonic() - began, why)
        return response

    def _log(self, request: web.BaseRequest, status: int, seconds: float, why: str) -> None:
        # The first segment is the signature, or could be one.
        path = request.raw_path.removeprefix(self.config.path_prefix).lstrip("/").partition("/")[2]
        line = f"{request.method} /*/{path} {status} {seconds * 1000:.0f} ms {why}".rstrip()
        print(line.encode("ascii", "backslashreplace").decode(), file=sys.stderr, flush=True)

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        prefix = self.config.path_prefix
        escaped = request.raw_path.partition("?")[0]
        if re.search(r"%(?![0-9A-Fa-f]{2})", escaped):
            return _instead_of_an_answer(request, BAD_REQUEST)
        path = unquote(escaped, errors="surrogateescape")
        if request.method == "GET":
            if path in (prefix, prefix + "/"):
                return await self._landing(request)
            if path == prefix + "/health":
                return self._text(request, 200, "imgproxy is running", "no-cache")
            if path == prefix + "/favicon.ico" or path.startswith(prefix + "/.well-known/"):
                return self._text(request, 404, " ")
            if path.startswith(prefix + "/"):
                return await self._image(request)
        elif request.method in ("HEAD", "OPTIONS") and path.startswith(prefix + "/"):
            return self._text(request, 200, " ", self._ordinary_cache_control())
        return self._text(request, 404, " ")

    def _text(self, request: web.BaseRequest, status: int, text: str, cache_control: str | None = None) -> web.Response:
        fields = headers.common(request.headers)
        fields["Content-Type"] = "text/plain"
        if cache_control:
            fields["Cache-Control"] = cache_control
        return web.Response(status=status, headers=fields, body=text.encode())

    def _ordinary_cache_control(self) -> str | None:
        return headers.cache_control(self.config, 200, {}, Options(), is_fallback=False)

    async def _landing(self, request: web.BaseRequest) -> web.StreamResponse:
        fields = headers.common(request.headers)
        fields["Content-Type"] = "text/html"
        fields["Cache-Control"] = self._ordinary_cache_control() or ""
        response = web.StreamResponse(headers=fields)
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write_eof(LANDING_PAGE)
        return response

    async def _image(self, request: web.BaseRequest) -> web.StreamResponse:
        secret = f"Bearer {self.config.secret}".encode()
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        if self.config.secret and not hmac.compare_digest(given, secret):
            raise Refusal(403, "Forbidden", "wrong secret")
        signature, path = paths.split(request.raw_path, self.config.path_prefix)
        paths.verify(self.config, signature, path)
        options, address = parse(path)
        if options.raw:
            return await self._raw(request, options, address)
        if options.format and not options.format.is_saved and options.format.name != "svg":
            raise Refusal(422, "Invalid URL", f"cannot save {options.format.name}")
        return await self._processed(request, options, address)

    async def _processed(self, request: web.BaseRequest, options: Options, address: str) -> web.StreamResponse:
        source, status, is_fallback = Source(0, Headers(), b""), 200, False
        try:
            conditions = headers.conditions(self.config, request.headers)
            source = await asyncio.to_thread(fetch, self.config, address, conditions)
            if source.status == 304:
                return self._not_modified(request, options, source)
            body, found = _image_in(source)
        except Refusal as refusal:
            if self.fallback is None:
                raise
            body, found = self.fallback
            status, is_fallback = self.config.fallback_status or refusal.status, True
        if not is_fallback and not source.is_complete:
            raise Refusal(422, "Source response is incomplete")
        preferred, enforced = self._detected(request)
        rendered = await asyncio.get_running_loop().run_in_executor(
            self.renderers, render, body, found, options, preferred, enforced
        )
        fields = headers.common(request.headers)
        fields["Content-Type"] = rendered.format.media_type
        fields["Content-Disposition"] = headers.content_disposition(options, address, rendered.format.extension)
        stated = Headers() if is_fallback else source.headers
        self._add_caching(fields, status, stated, options, is_fallback)
        fields.update(headers.validators(self.config, source.headers if source.status == 200 else {}))
        if self.config.debug_headers:
            fields.update(_debug_headers(rendered, len(body)))
        return web.Response(status=status, headers=fields, body=rendered.body)

    def _detected(self, request: web.BaseRequest) -> tuple[list[str], list[str]]:
        accept = request.headers.get("Accept", "")
        accepted = [name for name in PREFERENCE if f"image/{name}" in accept]
        enforced = [name for name in accepted if name in self.config.enforced]
        return [name for name in accepted if name in self.config.auto | self.config.enforced], enforced

    def _not_modified(self, request: web.BaseRequest, options: Options, source: Source) -> web.Response:
        fields = headers.common(request.headers)
        self._add_caching(fields, 304, source.headers, options, is_fallback=False)
        fields.update(headers.validators(self.config, source.headers))
        return web.Response(status=304, headers=fields)

    def _add_caching(self, fields: Headers, status: int, source: Headers, options: Options, is_fallback: bool) -> None:
        if value := headers.cache_control(self.config, status, source, options, is_fallback):
            fields["Cache-Control"] = value
        if self.config.detects_formats:
            fields["Vary"] = "Accept"

    async def _raw(self, request: web.BaseRequest, options: Options, address: str) -> web.StreamResponse:
        sent = {name: request.headers[name] for name in RAW_REQUEST_HEADERS if name in request.headers}
        source = await asyncio.to_thread(fetch, self.config, address, sent)
        fields = headers.common(request.headers)
        for name in RAW_RESPONSE_HEADERS:
            if name in source.headers:
                fields["Etag" if name == "ETag" else name] = source.headers[name]
        if value := headers.cache_control(self.config, source.status, source.headers, options, is_fallback=False):
            fields["Cache-Control"] = value
        if 200 <= source.status < 300:
            path = unquote(urlsplit(address).path) if address.startswith("http") else address
            media_type = source.headers.get("Content-Type", "")
            fields["Content-Disposition"] = headers.content_disposition(options, path, "", media_type)
        if source.is_complete:
            return web.Response(status=source.status, headers=fields, body=source.body)
        return await self._cut(request, source, fields)

    async def _cut(self, request: web.BaseRequest, source: Source, fields: Headers) -> web.StreamResponse:
        """Breaks off where the source did: raw mode streams, so by then its head is gone, or still in a buffer."""
        if len(source.body) < SOURCE_BLOCK_BYTES:
            return _instead_of_an_answer(request)
        if "Content-Length" in source.headers:
            fields["Content-Length"] = source.headers["Content-Length"]
        response = web.StreamResponse(status=source.status, headers=fields)
        await response.prepare(request)
        await response.write(source.body)
        if request.transport:
            request.transport.close()
        return response


def _instead_of_an_answer(request: web.BaseRequest, sent: bytes = b"") -> web.Response:
    """Sends these bytes, or none, and closes the connection; what is returned goes nowhere."""
    if request.transport:
        request.transport.write(sent)
        request.transport.close()
    return web.Response(status=400 if sent else 502)


def _image_in(source: Source) -> tuple[bytes, Format]:
    """The source's image, or a refusal that a configured fallback image can replace."""
    if source.status != 200:
        status = 502 if source.status >= 500 else source.status if source.status >= 400 else 404
        raise unreachable(f"source answered {source.status}", status)
    found = detect(source.body)
    if found is None or (not source.is_complete and len(source.body) < SOURCE_BLOCK_BYTES):
        raise Refusal(422, "Invalid source image", "no image")
    return source.body, found


def _debug_headers(rendered: Rendered, source_bytes: int) -> dict[str, str]:
    return {
        "X-Origin-Content-Length": str(source_bytes),
        "X-Origin-Width": str(rendered.source_size[0]),
        "X-Origin-Height": str(rendered.source_size[1]),
        "X-Result-Width": str(rendered.size[0]),
        "X-Result-Height": str(rendered.size[1]),
    }


def _check_versions() -> None:
    found = {**VERSIONS, "aiohttp": aiohttp.__version__}
    for name, version in PINNED.items():
        if found[name] != version:
            raise ConfigError(
                f"{name} is {found[name]} but {version} is pinned: install requirements.txt in a new venv"
            )


def _fallback(config: Config) -> tuple[bytes, Format] | None:
    if config.fallback_path is None:
        return None
    data = config.fallback_path.read_bytes()
    found = detect(data)
    if found is None:
        raise ConfigError(f"IMGPROXY_FALLBACK_IMAGE_PATH: {config.fallback_path} is no image")
    return data, found


async def serve(config: Config) -> None:
    stand_in = StandIn(config, _fallback(config))
    server = web.Server(stand_in.answer, access_log=None, max_line_size=MAX_LINE_BYTES, max_field_size=MAX_LINE_BYTES)
    runner = web.ServerRunner(server, shutdown_timeout=STOP_SECONDS)
    await runner.setup()
    site = web.TCPSite(runner, config.host, config.port)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise ConfigError(f"cannot listen on {config.host}:{config.port}: {os.strerror(error.errno or 0)}") from None
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    host, port = runner.addresses[0][:2]
    print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    await stop.wait()
    await runner.cleanup()
    stand_in.renderers.shutdown()


def main() -> int:
    try:
        _check_versions()
        config = Config.from_environment(os.environ)
        if config.unread:
            print(f"not read by the stand-in: {', '.join(config.unread)}", file=sys.stderr)
        asyncio.run(serve(config))
    except (ConfigError, OSError) as error:
        print(f"imgproxy stand-in: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
