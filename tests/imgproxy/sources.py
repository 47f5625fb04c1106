"""Where images come from: the photos directory and servers on loopback. Blocking: call from a thread."""

import base64
import hashlib
import http.client
import ipaddress
import mimetypes
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

from multidict import CIMultiDict

from config import Config
from formats import detect
from refusal import Refusal, unreachable

Headers = CIMultiDict[str]

TIMEOUT_SECONDS = 5
MAX_REDIRECTS = 10
URL_CHARACTERS = "%/:?@!$&'()*+,;=~"
USER_AGENT = "imgproxy/4.0.12"


@dataclass(frozen=True)
class Source:
    status: int
    headers: Headers
    body: bytes
    is_complete: bool = True


NOT_FOUND = Source(404, Headers({"Content-Type": "text/plain"}), b"no such photo")


def fetch(config: Config, address: str, request: Mapping[str, str]) -> Source:
    """The source's answer, whatever its status; a refusal if there is none."""
    if re.search(r"[\0-\x1f\x7f]", address):
        raise unreachable("control character in the address")
    scheme = address.partition(":")[0].lower()
    if scheme == "local" and config.root is not None:
        return _local(config.root, address, request)
    if scheme == "http":
        return _http(config, address, request)
    raise unreachable("no such scheme")


def _local(root: Path, address: str, request: Mapping[str, str]) -> Source:
    rest = address.partition(":")[2].removeprefix("//")
    key = rest.partition("/")[2].lstrip("/").partition("?")[0]
    if not key:
        return NOT_FOUND
    name = "/" + key
    path = root / posixpath.normpath(name).lstrip("/")
    if path.is_dir():
        return NOT_FOUND
    try:
        body, stat = path.read_bytes(), path.stat()
    except OSError:
        return NOT_FOUND
    headers = Headers({"Accept-Ranges": "bytes", "Content-Type": _media_type(path, body)})
    try:
        start, end = _range(request.get("Range", ""))
    except ValueError:
        return Source(416, Headers(), b"")
    if end != 0:
        part = body[start:] if end < 0 else body[start : end + 1]
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(body)}"
        headers["Content-Length"] = str(len(part))
        return Source(206, headers, part)
    tag = hashlib.sha256(f"{name}__{stat.st_size}__{stat.st_mtime_ns}".encode(errors="surrogateescape")).digest()
    validators = Headers(
        {
            "ETag": f'"{base64.urlsafe_b64encode(tag).rstrip(b"=").decode()}"',
            "Last-Modified": formatdate(int(stat.st_mtime), usegmt=True),
        }
    )
    if _is_not_modified(request, validators):
        return Source(304, validators, b"")
    headers.update(validators)
    headers["Content-Length"] = str(len(body))
    return Source(200, headers, body)


def _media_type(path: Path, body: bytes) -> str:
    if found := detect(body):
        return found.media_type
    guessed = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"{guessed}; charset=utf-8" if guessed.startswith("text/") else guessed


def _range(header: str) -> tuple[int, int]:
    """First and last byte; the last is -1 for an open end and 0 for no range at all, as in imgproxy."""
    if not header:
        return 0, 0
    match = re.fullmatch(r"bytes=[\s,]*([0-9]+)\s*-\s*([0-9]*)\s*(,.*)?", header)
    if not match:
        raise ValueError(header)
    start, end = int(match[1]), int(match[2]) if match[2] else -1
    if 0 <= end < start:
        raise ValueError(header)
    return start, end


def _is_not_modified(request: Mapping[str, str], validators: Headers) -> bool:
    if given := request.get("If-None-Match"):
        # One tag, compared as text: `*` and lists never match.
        return _unquoted(given) == _unquoted(validators["ETag"])
    try:
        since = parsedate_to_datetime(request.get("If-Modified-Since", ""))
        return parsedate_to_datetime(validators["Last-Modified"]) <= since
    except (ValueError, TypeError):
        return False


def _unquoted(tag: str) -> str:
    return tag.removeprefix("W/").strip('"')


def _http(config: Config, address: str, request: Mapping[str, str]) -> Source:
    for _ in range(MAX_REDIRECTS):
        source = _get(config, address, request)
        location = source.headers.get("Location")
        if source.status not in (301, 302, 303, 307, 308) or not location:
            return source
        address = urljoin(address, location)
    raise unreachable("too many redirects")


def _get(config: Config, address: str, request: Mapping[str, str]) -> Source:
    try:
        url = urlsplit(address)
        host, port = url.hostname or "", url.port or 80
    except ValueError:
        raise unreachable("not a URL") from None
    if url.scheme != "http" or not _is_loopback(host):
        raise unreachable("the stand-in asks servers on loopback only")
    if not config.allow_loopback:
        raise Refusal(404, "Invalid source URL", "loopback sources are not allowed")
    target = quote(f"{url.path or '/'}?{url.query}".removesuffix("?"), safe=URL_CHARACTERS)
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.putrequest("GET", target, skip_accept_encoding=True)
        connection.putheader("User-Agent", USER_AGENT)
        for name, value in request.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        headers = Headers(response.getheaders())
        try:
            return Source(response.status, headers, response.read())
        except http.client.IncompleteRead as cut:
            return Source(response.status, headers, cut.partial, is_complete=False)
    except TimeoutError:
        raise unreachable("timed out", 504) from None
    except (OSError, http.client.HTTPException) as error:
        raise unreachable(str(error)) from None
    finally:
        connection.close()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
