"""Processing options and the source address, parsed from a repaired path."""

import re
import time
from dataclasses import dataclass, field
from urllib.parse import unquote

from config import TRUE
from formats import BY_NAME, Format
from paths import decode_base64
from refusal import invalid_url

RESIZING_TYPES = {"fit", "fill", "fill-down", "force", "auto"}
GRAVITIES = {"ce", "no", "ea", "so", "we", "nowe", "noea", "sowe", "soea", "sm", "fp"}


@dataclass
class Options:
    width: int = 0
    height: int = 0
    resizing_type: str = "fit"
    enlarge: bool = False
    dpr: float = 1.0
    gravity: str = "ce"
    gravity_x: float = 0.0
    gravity_y: float = 0.0
    format: Format | None = None
    quality: int = 0
    format_quality: dict[str, int] = field(default_factory=dict)
    expires: int | None = None
    raw: bool = False
    filename: str = ""
    attachment: bool = False


def parse(path: str) -> tuple[Options, str]:
    parts = path.removeprefix("/").split("/")
    if parts[0] in RESIZING_TYPES:
        raise invalid_url("the basic URL format of old")
    options = Options()
    for position, part in enumerate(parts):
        name, *arguments = part.split(":")
        if not arguments:
            source, extension = _source(parts[position:])
            break
        _apply(options, name, arguments)
    else:
        raise invalid_url("no source")
    if extension and not options.raw:
        options.format = _format(extension)
    return options, source


def _source(parts: list[str]) -> tuple[str, str]:
    is_plain = parts[0] == "plain" and len(parts) > 1
    encoded, *extensions = "/".join(parts[1:]).split("@") if is_plain else "".join(parts).split(".")
    if not encoded or len(extensions) > 1:
        raise invalid_url("no source, or several formats")
    extension = extensions[0] if extensions else ""
    if is_plain:
        return unquote(encoded, errors="surrogateescape"), extension
    decoded = decode_base64(encoded.rstrip("="))
    if decoded is None:
        raise invalid_url("bad base64")
    return decoded.decode(errors="surrogateescape"), extension


def _apply(options: Options, name: str, arguments: list[str]) -> None:
    match name:
        case "resize" | "rs":
            _at_most(arguments, 8)
            if arguments[0]:
                options.resizing_type = _resizing_type(arguments[:1])
            _size(options, arguments[1:])
        case "size" | "s":
            _at_most(arguments, 7)
            _size(options, arguments)
        case "resizing_type" | "rt":
            options.resizing_type = _resizing_type(arguments)
        case "width" | "w":
            options.width = _natural(arguments)
        case "height" | "h":
            options.height = _natural(arguments)
        case "enlarge" | "el":
            options.enlarge = _boolean(arguments)
        case "dpr":
            options.dpr = _decimal(_only(arguments))
            if options.dpr <= 0:
                raise invalid_url("dpr is not positive")
        case "gravity" | "g":
            _gravity(options, arguments)
        case "format" | "f" | "ext":
            options.format = _format(_only(arguments))
        case "quality" | "q":
            options.quality = _quality(_only(arguments))
        case "format_quality" | "fq":
            if len(arguments) % 2:
                raise invalid_url("format quality without a number")
            for of, quality in zip(arguments[::2], arguments[1::2], strict=True):
                options.format_quality[_format(of).name] = _quality(quality)
        case "expires" | "exp":
            options.expires = _integer(_only(arguments))
            if 0 < options.expires < int(time.time()):
                raise invalid_url("expired")
        case "cachebuster" | "cb":
            _only(arguments)
        case "raw":
            options.raw = _boolean(arguments)
        case "filename" | "fn":
            options.filename = _filename(arguments)
        case "return_attachment" | "att":
            options.attachment = _boolean(arguments)
        case _:
            raise invalid_url(f"option {name} is unknown to imgproxy or not spoken by the stand-in")


def _size(options: Options, arguments: list[str]) -> None:
    width, height, enlarge, extend, *_ = arguments + [""] * 4
    if width:
        options.width = _natural([width])
    if height:
        options.height = _natural([height])
    if enlarge:
        options.enlarge = _boolean([enlarge])
    if extend in TRUE:
        raise invalid_url("extend is not spoken by the stand-in")


def _gravity(options: Options, arguments: list[str]) -> None:
    name = arguments[0]
    if name not in GRAVITIES or len(arguments) > (1 if name == "sm" else 3):
        raise invalid_url("bad gravity")
    if name == "fp" and len(arguments) != 3:
        raise invalid_url("a focus point needs two coordinates")
    options.gravity = name
    x, y = ([_decimal(a) if a else None for a in arguments[1:]] + [None, None])[:2]
    if name == "fp" and not all(0 <= c <= 1 for c in (x, y) if c is not None):
        raise invalid_url("focus point outside the image")
    if name == "sm":
        x = y = 0.0
    options.gravity_x = options.gravity_x if x is None else x
    options.gravity_y = options.gravity_y if y is None else y


def _filename(arguments: list[str]) -> str:
    _at_most(arguments, 2)
    if len(arguments) < 2 or arguments[1] not in TRUE:
        return arguments[0]
    decoded = decode_base64(arguments[0].rstrip("="))
    if decoded is None:
        raise invalid_url("file name is not base64")
    return decoded.decode(errors="surrogateescape")


def _at_most(arguments: list[str], limit: int) -> None:
    if len(arguments) > limit:
        raise invalid_url("too many arguments")


def _only(arguments: list[str]) -> str:
    _at_most(arguments, 1)
    return arguments[0]


def _boolean(arguments: list[str]) -> bool:
    # Whatever is no boolean counts as false, with imgproxy too.
    return _only(arguments) in TRUE


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise invalid_url("not an integer")
    return int(text)


def _natural(arguments: list[str]) -> int:
    value = _integer(_only(arguments))
    if value < 0:
        raise invalid_url("negative")
    return value


def _quality(text: str) -> int:
    value = _integer(text)
    if not 0 <= value <= 100:
        raise invalid_url("quality outside 0 to 100")
    return value


def _decimal(text: str) -> float:
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?", text):
        raise invalid_url("not a number")
    return float(text)


def _resizing_type(arguments: list[str]) -> str:
    name = _only(arguments)
    if name not in RESIZING_TYPES:
        raise invalid_url("unknown resizing type")
    return name


def _format(name: str) -> Format:
    if name not in BY_NAME:
        raise invalid_url("unknown format")
    return BY_NAME[name]
