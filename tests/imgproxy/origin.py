#!/usr/bin/env python3
"""The replaying origin: answers the recorded exchanges of one configuration, with a made-up body behind each head.

An exchange is found by method, path and the recorded request headers: of those whose headers the request all has, the
one with the most. `Accept` counts as imgproxy reads it, by the formats it names among those that the configuration
detects, because a cache in front reduces it to them. Whatever was not recorded is answered 501.
"""

import argparse
import asyncio
import hashlib
import json
import signal
import sys
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).resolve().parent / "recorded.json"
MAX_HEAD_BYTES = 64 * 1024

SVG_START, SVG_END = b'<svg xmlns="http://www.w3.org/2000/svg"><!--', b"--></svg>"
HTML_START, HTML_END = b"<!DOCTYPE html><title>", b"</title>"


@dataclass(frozen=True)
class Exchange:
    method: str
    path: str
    request: dict[str, str]
    accepted: frozenset[str]
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @classmethod
    def from_recording(cls, exchange: dict[str, Any], detected: set[str]) -> "Exchange":
        answer = exchange["answer"]
        headers = [(name, value) for name, value in answer["headers"]]
        request = {name.lower(): value for name, value in exchange.get("headers", {}).items()}
        return cls(
            exchange["method"],
            exchange["path"],
            request,
            accepted(request, detected),
            answer["status"],
            headers,
            made_up_body(answer, dict(headers).get("content-type", "")),
        )

    def similarity(self, headers: dict[str, str]) -> int | None:
        """How many of the recorded request headers these have; None if another than `Accept` is missing."""
        common = self.request.items() & headers.items()
        return len(common) if self.request.keys() - {"accept"} <= {name for name, _ in common} else None

    @property
    def is_chunked(self) -> bool:
        return ("transfer-encoding", "chunked") in self.headers


def detected_formats(environment: dict[str, str]) -> set[str]:
    switches = [name.removeprefix("IMGPROXY_").partition("_") for name in environment]
    return {f"image/{end.lower()}" for start, _, end in switches if start in ("AUTO", "ENFORCE")}


def accepted(request: dict[str, str], detected: set[str]) -> frozenset[str]:
    return frozenset(media_type for media_type in detected if media_type in request.get("accept", ""))


def made_up_body(answer: dict[str, Any], media_type: str) -> bytes:
    """As long as the recorded one, of its type by magic number, equal where the recorded bytes are and only there."""
    length = answer["length"]
    if "text" in answer:
        return answer["text"].encode()
    if length == 0:
        return b""
    noise = hashlib.shake_256(bytes.fromhex(answer["sha256"]))
    if media_type in ("image/svg+xml", "text/html"):
        start, end = (SVG_START, SVG_END) if media_type == "image/svg+xml" else (HTML_START, HTML_END)
        return start + noise.hexdigest(length)[: length - len(start) - len(end)].encode() + end
    starts = {
        "image/jpeg": b"\xff\xd8\xff\xe0",
        "image/png": b"\x89PNG\r\n\x1a\n",
        "image/webp": b"RIFF" + (length - 8).to_bytes(4, "little") + b"WEBP",
        "image/gif": b"GIF89a",
        "image/avif": b"\0\0\0\x1cftypavif",
        "image/jxl": b"\xff\n",
        "image/bmp": b"BM" + length.to_bytes(4, "little"),
        "image/tiff": b"II*\0",
        "image/x-icon": b"\0\0\x01\0",
    }
    start = starts[media_type]
    return start + noise.digest(length)[len(start) :]


class Origin:
    def __init__(self, configuration: dict[str, Any]) -> None:
        self.detected = detected_formats(configuration["environment"])
        self.exchanges: dict[tuple[str, str, frozenset[str]], list[Exchange]] = {}
        for recorded in configuration["exchanges"]:
            exchange = Exchange.from_recording(recorded, self.detected)
            self.exchanges.setdefault((exchange.method, exchange.path, exchange.accepted), []).append(exchange)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _read_request(reader)) is not None:
                writer.write(self._answer(*request))
                await writer.drain()
        except (ConnectionError, asyncio.LimitOverrunError, ValueError):
            pass
        finally:
            writer.close()

    def _answer(self, method: str, path: str, headers: dict[str, str]) -> bytes:
        candidates = self.exchanges.get((method, path, accepted(headers, self.detected)), [])
        rated = [
            (rating, candidate) for candidate in candidates if (rating := candidate.similarity(headers)) is not None
        ]
        if not rated:
            print(f"not recorded: {method} {path}", file=sys.stderr, flush=True)
            return _message(501, [("content-length", "0")], b"", method)
        exchange = max(rated, key=lambda pair: pair[0])[1]
        body = exchange.body
        if exchange.is_chunked:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        return _message(exchange.status, exchange.headers, body, method)


def _message(status: int, headers: list[tuple[str, str]], body: bytes, method: str) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in [*headers, ("date", formatdate(usegmt=True))]]
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    return head if method == "HEAD" else head + body


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str]] | None:
    """None when the client has left. A body with a length is read and dropped."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request_line, *lines = head[:-4].split("\r\n")
        method, path, _ = request_line.split(" ")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        await reader.readexactly(int(headers.get("content-length", "0")))
    except asyncio.IncompleteReadError:
        return None
    return method, path, headers


async def serve(configuration: dict[str, Any], port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = await asyncio.start_server(Origin(configuration).converse, "127.0.0.1", port, limit=MAX_HEAD_BYTES)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await stop.wait()
    server.close()


def main() -> int:
    recording = json.loads(RECORDED.read_text())
    by_name = {configuration["name"]: configuration for configuration in recording["configurations"]}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("configuration", choices=by_name)
    parser.add_argument("--port", type=int, default=0, help="0, the default, for a free one")
    arguments = parser.parse_args()
    try:
        asyncio.run(serve(by_name[arguments.configuration], arguments.port))
    except OSError as error:
        print(f"replaying origin: cannot listen on 127.0.0.1:{arguments.port}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
