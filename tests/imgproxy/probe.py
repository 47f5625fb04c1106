"""What a body is, by its first bytes, and how large: independent of the stand-in and of any image library."""

import re
import struct

MAGIC = {
    "jpeg": rb"\xff\xd8\xff",
    "png": rb"\x89PNG\r\n\x1a\n",
    "webp": rb"RIFF.{4}WEBP",
    "gif": rb"GIF8[79]a",
    "avif": rb".{4}ftypavif",
    "jxl": rb"\xff\n|\0\0\0\x0cJXL ",
    "bmp": rb"BM",
    "tiff": rb"II\*\0|MM\0\*",
    "ico": rb"\0\0\x01\0",
    "svg": rb"(<\?xml[^>]*>\s*)?<svg",
}


def image_type(body: bytes) -> str | None:
    return next((name for name, magic in MAGIC.items() if re.match(magic, body, re.DOTALL)), None)


def dimensions(body: bytes) -> tuple[int, int] | None:
    """Width and height; None for types whose size the recordings do not have either."""
    match image_type(body):
        case "png":
            return struct.unpack_from(">II", body, 16)
        case "gif":
            return struct.unpack_from("<HH", body, 6)
        case "jpeg":
            return _jpeg(body)
        case "webp":
            return _webp(body)
        case "avif":
            box = body.index(b"ispe")
            return struct.unpack_from(">II", body, box + 8)
        case "jxl":
            return _jxl(body)
        case "svg":
            width, height = (re.search(rb"<svg[^>]*\s" + side + rb'="(\d+)"', body) for side in (b"width", b"height"))
            return (int(width[1]), int(height[1])) if width and height else None
    return None


def _jpeg(body: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(body):
        marker, length = struct.unpack_from(">HH", body, at)
        if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            height, width = struct.unpack_from(">HH", body, at + 5)
            return width, height
        at += 2 + length
    return None


def _webp(body: bytes) -> tuple[int, int] | None:
    match body[12:16]:
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", body, 26)
            return width & 0x3FFF, height & 0x3FFF
        case b"VP8L":
            bits = struct.unpack_from("<I", body, 21)[0]
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            return int.from_bytes(body[24:27], "little") + 1, int.from_bytes(body[27:30], "little") + 1
    return None


def _jxl(body: bytes) -> tuple[int, int]:
    """ISO/IEC 18181-1, SizeHeader: bits from the least significant up."""
    start = body.index(b"\xff\n")
    bits, at = int.from_bytes(body[start + 2 : start + 18], "little"), 0

    def take(count: int) -> int:
        nonlocal at
        value = bits >> at & (1 << count) - 1
        at += count
        return value

    def side(small: int) -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    small = take(1)
    height = side(small)
    ratio = take(3)
    if ratio == 0:
        return side(small), height
    across, down = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * across // down, height
