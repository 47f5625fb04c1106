#!/usr/bin/env python3
"""Replays the recorded exchanges against an imgproxy, the stand-in or a real one, and compares the answers."""

import argparse
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from probe import dimensions, image_type
from scripted_source import scripted_source

HERE = Path(__file__).resolve().parent
PHOTOS = HERE.parent / "photos"
RECORDED_SOURCE = "127.0.0.1:18099"
REQUIRED = 150
START_SECONDS = 120
REQUEST_SECONDS = 120
STOP_SECONDS = 60
CLOCK_SECONDS = 120
NOT_COMPARED = {"date", "x-request-id", "connection", "keep-alive"}
UNPROBED = {"image/bmp": "bmp", "image/tiff": "tiff", "image/x-icon": "ico"}

COFFEE = "/insecure/rs:fill:120:80/plain/local:///coffee.png"
NO_JXL = "the libvips of pyvips-binary has no JPEG XL"
NOT_IN_LIBVIPS = "imgproxy has an encoder of its own, libvips has none"
# (configuration, path, recorded media type): reason. For the stand-in only.
NOT_SPOKEN = {
    ("default", f"{COFFEE}@jxl", "image/jxl"): NO_JXL,
    ("default", f"{COFFEE}@bmp", "image/bmp"): NOT_IN_LIBVIPS,
    ("default", f"{COFFEE}@ico", "image/x-icon"): NOT_IN_LIBVIPS,
    ("auto_webp_avif_jxl", COFFEE, "image/jxl"): NO_JXL,
}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Pairs:
    """Recorded values and what was seen in their place: the same value for the same one, another for another."""

    name: str
    seen: dict[str, str] = field(default_factory=dict)
    recorded: dict[str, str] = field(default_factory=dict)

    def difference(self, recorded: str, seen: str) -> str | None:
        if self.seen.setdefault(recorded, seen) != seen:
            return f"{self.name}: was {self.seen[recorded]} where the recording has the same value, now {seen}"
        if self.recorded.setdefault(seen, recorded) != recorded:
            return f"{self.name}: {seen} was seen before, where the recording has another value"
        return None


class Replay:
    def __init__(self, recording: dict[str, Any], command: list[str], is_stand_in: bool, only: str | None) -> None:
        self.recording = recording
        self.command = command
        self.not_spoken = NOT_SPOKEN if is_stand_in else {}
        self.only = only
        self.etags, self.dates, self.bodies = Pairs("etag"), Pairs("last-modified"), Pairs("sha256 of the body")
        self.agreed = self.listed = self.failed = 0

    def run(self) -> bool:
        with scripted_source(PHOTOS / "coffee.png", self.recording["source_headers"]) as source_port:
            for configuration in self.recording["configurations"]:
                if self.only in (None, configuration["name"]):
                    self._replay(configuration, source_port)
        print(f"{self.agreed} agreed, {self.listed} not spoken (listed), {self.failed} failed")
        return self.failed == 0 and (self.agreed >= REQUIRED or self.only is not None)

    def _replay(self, configuration: dict[str, Any], source_port: int) -> None:
        recorded = configuration["environment"]
        environment = {name: value.replace("$PHOTOS", str(PHOTOS)) for name, value in recorded.items()}
        prefix = environment.get("IMGPROXY_PATH_PREFIX", "")
        failed_before = self.failed
        with running(self.command, environment, prefix) as (port, log):
            for exchange in configuration["exchanges"]:
                request = dict(exchange.get("headers", {}))
                for name, pairs in (("If-None-Match", self.etags), ("If-Modified-Since", self.dates)):
                    if name in request:
                        request[name] = pairs.seen.get(request[name], request[name])
                path = exchange["path"].replace(RECORDED_SOURCE, f"127.0.0.1:{source_port}")
                answer = ask(port, exchange["method"], path, request)
                self._judge(configuration["name"], exchange, self._differences(exchange, answer))
            if self.failed > failed_before:
                print(f"--- what the server of {configuration['name']} wrote\n{log.read_text(errors='replace')}---")

    def _judge(self, configuration: str, exchange: dict[str, Any], differences: list[str]) -> None:
        media_type = dict(exchange["answer"]["headers"]).get("content-type", "")
        reason = self.not_spoken.get((configuration, exchange["path"], media_type))
        if reason and differences:
            self.listed += 1
            return
        if reason:
            differences = [f"agrees, though it is listed as not spoken: {reason}"]
        if not differences:
            self.agreed += 1
            return
        self.failed += 1
        note = f"  ({exchange['note']})" if exchange.get("note") else ""
        print(f"[{configuration}] {exchange['method']} {exchange['path']} {exchange.get('headers', '')}{note}")
        for difference in differences:
            print(f"    {difference}")

    def _differences(self, exchange: dict[str, Any], answer: Answer) -> list[str]:
        recorded = exchange["answer"]
        found: list[str | None] = []
        if recorded["status"] != answer.status:
            # Nothing of such an answer may enter the pairs: it would blame the exchanges after it.
            return [f"status: recorded {recorded['status']}, seen {answer.status} {answer.body[:120]!r}"]
        expected = {name: value for name, value in recorded["headers"] if name not in NOT_COMPARED}
        for name in sorted(expected.keys() | answer.headers.keys()):
            found.append(self._header_difference(exchange, name, expected.get(name), answer))
        found += self._body_differences(exchange["method"], recorded, answer.body)
        return [difference for difference in found if difference]

    def _header_difference(
        self, exchange: dict[str, Any], name: str, recorded: str | None, answer: Answer
    ) -> str | None:
        seen = answer.headers.get(name)
        plain = f"{name}: recorded {recorded!r}, seen {seen!r}"
        if recorded is None or seen is None:
            return plain
        if name == "etag":
            same_form = recorded.startswith("W/") == seen.startswith("W/") and seen.endswith('"')
            return self.etags.difference(recorded, seen) if same_form else plain
        if name == "last-modified":
            return self.dates.difference(recorded, seen) if _is_date(seen) else plain
        if name == "content-length":
            body_length = len(answer.body) if exchange["method"] != "HEAD" else int(recorded)
            return None if seen == str(body_length) else plain
        if name == "cache-control" and (expires := self._source_expires(exchange)) and recorded.startswith("max-age=2"):
            return None if _counts_down_to(seen, expires) else plain
        return None if recorded == seen else plain

    def _source_expires(self, exchange: dict[str, Any]) -> str | None:
        """The Expires of the exchange's source: a max-age made of it depends on the time of day."""
        for name, fields in self.recording["source_headers"].items():
            if f"/{name}.png" in exchange["path"]:
                expires: str | None = fields.get("Expires")
                return expires
        return None

    def _body_differences(self, method: str, recorded: dict[str, Any], body: bytes) -> list[str | None]:
        if recorded["length"] == 0:
            return [f"body: recorded none, seen {len(body)} bytes" if body else None]
        if "text" in recorded:
            text = body.decode(errors="replace")
            return [None if text == recorded["text"] else f"body: recorded {recorded['text']!r}, seen {text!r}"]
        if not body:
            return ["body: seen none"]
        media_type = dict(recorded["headers"])["content-type"]
        expected = recorded.get("image") or UNPROBED.get(media_type)
        seen = image_type(body)
        if expected != seen:
            return [f"image type: recorded {expected}, seen {seen}"]
        found = [self.bodies.difference(recorded["sha256"], hashlib.sha256(body).hexdigest())]
        size = (recorded.get("width"), recorded.get("height"))
        if size != (None, None) and size != dimensions(body):
            found.append(f"dimensions: recorded {size}, seen {dimensions(body)}")
        return found


def _is_date(text: str) -> bool:
    try:
        return parsedate_to_datetime(text) is not None and text.endswith(" GMT")
    except (ValueError, TypeError):
        return False


def _counts_down_to(cache_control: str, expires: str) -> bool:
    left = parsedate_to_datetime(expires).timestamp() - time.time()
    number = cache_control.removeprefix("max-age=").removesuffix(", public")
    return number.isdigit() and cache_control == f"max-age={number}, public" and abs(int(number) - left) < CLOCK_SECONDS


def ask(port: int, method: str, path: str, headers: dict[str, str]) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_SECONDS)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        body = response.read()
        fields: dict[str, str] = {}
        for name, value in ((name.lower(), value) for name, value in response.getheaders()):
            if name not in NOT_COMPARED:
                fields[name] = f"{fields[name]}, {value}" if name in fields else value
        return Answer(response.status, fields, body)
    except (OSError, http.client.HTTPException) as error:
        return Answer(0, {}, repr(error).encode())
    finally:
        connection.close()


@contextmanager
def running(command: list[str], environment: dict[str, str], prefix: str) -> Iterator[tuple[int, Path]]:
    """An imgproxy with this environment on a free port; yields the port and the file with what it wrote."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("IMGPROXY_") and k != "PORT"}
    port = free_port()
    environment = {
        "IMGPROXY_BIND": f"127.0.0.1:{port}",
        "IMGPROXY_LOCAL_FILESYSTEM_ROOT": str(PHOTOS),
        "IMGPROXY_ALLOW_LOOPBACK_SOURCE_ADDRESSES": "1",
        **environment,
    }
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=inherited | environment, stdout=output, stderr=output)
        try:
            _await_health(process, port, prefix, log)
            yield port, log
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _await_health(process: subprocess.Popen[bytes], port: int, prefix: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while ask(port, "GET", f"{prefix}/health", {}).status != 200:
        if process.poll() is not None or time.monotonic() > deadline:
            state = f"ended with {process.returncode}" if process.poll() is not None else "does not answer"
            raise SystemExit(f"the server {state}:\n{log.read_text(errors='replace')}")
        time.sleep(0.02)
    if process.poll() is not None:
        raise SystemExit(f"another server has taken port {port}:\n{log.read_text(errors='replace')}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="CONFIGURATION", help="replay one configuration")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--binary", help="a real imgproxy: the list of what the stand-in does not speak does not apply")
    which.add_argument("--server", nargs=argparse.REMAINDER, metavar="CMD", help="the stand-in; last argument")
    arguments = parser.parse_args()
    command = [arguments.binary] if arguments.binary else arguments.server
    if not command:
        parser.error("--server needs a command")
    # The server must be ended on this signal too, so it has to unwind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    recording = json.loads((HERE / "recorded.json").read_text())
    names = [configuration["name"] for configuration in recording["configurations"]]
    if arguments.only is not None and arguments.only not in names:
        parser.error(f"--only: one of {', '.join(names)}")
    return 0 if Replay(recording, command, not arguments.binary, arguments.only).run() else 1


if __name__ == "__main__":
    sys.exit(main())
