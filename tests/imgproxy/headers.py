"""The headers of an answer, as imgproxy writes them."""

import re
import secrets
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from multidict import CIMultiDict

from config import Config
from options import Options

Headers = CIMultiDict[str]

CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"
EXTENSIONS = {
    "image/jpeg": ".jpeg",
    "image/png": ".png",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/avif": ".avif",
    "image/svg+xml": ".svg",
}


def common(request: Mapping[str, str]) -> Headers:
    """What every answer carries."""
    request_id = request.get("X-Request-Id", "")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", request_id):
        request_id = secrets.token_urlsafe(16)[:21]
    return Headers(
        {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Server": "imgproxy", "X-Request-Id": request_id}
    )


def cache_control(
    config: Config, status: int, source: Mapping[str, str], options: Options, is_fallback: bool
) -> str | None:
    max_age = -1
    if is_fallback and config.fallback_ttl > 0:
        max_age = config.fallback_ttl
    if options.expires is not None:
        left = max(0, options.expires - int(time.time()))
        if max_age < 0 or left < max_age:
            max_age = min(config.ttl, left)
    if max_age > 0:
        return f"max-age={max_age}, public"
    if status >= 400:
        return None
    if config.cache_control_passthrough:
        if stated := source.get("Cache-Control"):
            return stated
        if (left := _seconds_until(source.get("Expires", ""))) > 0:
            return f"max-age={left}, public"
    return f"max-age={config.ttl}, public" if config.ttl > 0 else "no-cache"


def _seconds_until(date: str) -> int:
    try:
        return int(parsedate_to_datetime(date).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0


def conditions(config: Config, request: Mapping[str, str]) -> dict[str, str]:
    """The client's conditions that are put to the source."""
    sent = {}
    if config.use_last_modified and (since := request.get("If-Modified-Since")):
        sent["If-Modified-Since"] = since
    if config.use_etag and (tag := request.get("If-None-Match")):
        sent["If-None-Match"] = tag
    return sent


def validators(config: Config, source: Mapping[str, str]) -> dict[str, str]:
    kept = {}
    if config.use_last_modified and _is_date(source.get("Last-Modified", "")):
        kept["Last-Modified"] = source["Last-Modified"]
    if config.use_etag and source.get("ETag"):
        kept["Etag"] = source["ETag"]
    return kept


def _is_date(text: str) -> bool:
    try:
        parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return False
    return True


def content_disposition(options: Options, address: str, extension: str, media_type: str = "") -> str:
    name = address.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    own = dot + suffix if dot else ""
    stem = (options.filename or (stem if dot else name) or "image").replace('"', "%22")
    end = extension or own or EXTENSIONS.get(media_type.partition(";")[0], "")
    # A line break would end the header.
    stem = re.sub(r"[\r\n]", " ", stem)
    end = re.sub(r"[\r\n]", " ", end)
    return f'{"attachment" if options.attachment else "inline"}; filename="{stem}{end}"'
