"""Image formats: names, types, magic numbers."""

import re
from contextlib import suppress
from dataclasses import dataclass
from xml.parsers import expat

DETECTION_LIMIT_BYTES = 32 * 1024


@dataclass(frozen=True)
class Format:
    name: str
    extension: str
    media_type: str
    magic: bytes
    has_alpha: bool = True
    is_loaded: bool = True
    is_saved: bool = True


_ALL = (
    Format("jpeg", ".jpg", "image/jpeg", rb"\xff\xd8", has_alpha=False),
    Format("jxl", ".jxl", "image/jxl", rb"\xff\n|\0\0\0\x0cJXL \r\n\x87\n", is_loaded=False, is_saved=False),
    Format("png", ".png", "image/png", rb"\x89PNG\r\n\x1a\n"),
    Format("webp", ".webp", "image/webp", rb"RIFF.{4}WEBP"),
    Format("gif", ".gif", "image/gif", rb"GIF8.a"),
    Format("ico", ".ico", "image/x-icon", rb"\0\0\x01\0", is_loaded=False, is_saved=False),
    Format("heic", ".heic", "image/heif", rb".{4}ftyp(hei[cxms]|hev[cms]|mif1)", is_loaded=False, is_saved=False),
    Format("avif", ".avif", "image/avif", rb".{4}ftypavif"),
    Format("bmp", ".bmp", "image/bmp", rb"BM", is_loaded=False, is_saved=False),
    Format("tiff", ".tiff", "image/tiff", rb"II\*\0|MM\0\*"),
    Format("svg", ".svg", "image/svg+xml", rb"(?!)", is_saved=False),
)
BY_NAME = {f.name: f for f in _ALL} | {"jpg": _ALL[0]}
SVG = BY_NAME["svg"]


def detect(data: bytes) -> Format | None:
    for candidate in _ALL:
        if re.match(candidate.magic, data, re.DOTALL):
            return candidate
    return SVG if _holds_svg(data[:DETECTION_LIMIT_BYTES]) else None


def _holds_svg(data: bytes) -> bool:
    found = False

    def start(name: str, _attributes: dict[str, str]) -> None:
        nonlocal found
        found = found or name.rpartition(":")[2] == "svg"

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    with suppress(expat.ExpatError):
        parser.Parse(data, False)
    return found
