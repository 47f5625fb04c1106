"""Decode, scale, crop, encode: the sizes and encoder settings of imgproxy, on the same library."""

import os
import re
from dataclasses import dataclass

# One thread an image, as in imgproxy; libvips reads this once, when it is loaded.
os.environ.setdefault("VIPS_CONCURRENCY", "1")

import pyvips  # noqa: E402

from formats import BY_NAME, SVG, Format
from geometry import corner, plan, rounded
from options import Options
from refusal import Refusal, invalid_url

pyvips.cache_set_max(0)

VERSIONS = {"pyvips": pyvips.__version__, "libvips": ".".join(str(pyvips.version(part)) for part in range(3))}
MAX_SOURCE_PIXELS = 50_000_000
AVIF_MIN_SIDE = 16
DEFAULT_QUALITY = {"jpeg": 80, "webp": 79, "avif": 63, "tiff": 80}
BAD_IMAGE = re.compile(r"^(\S+load(_buffer|_source)?|\S+2vips|VipsJpeg): |XML parse error: ")


@dataclass(frozen=True)
class Rendered:
    body: bytes
    format: Format
    source_size: tuple[int, int]
    size: tuple[int, int]


def render(data: bytes, source_format: Format, options: Options, preferred: list[str], enforced: list[str]) -> Rendered:
    """`preferred` and `enforced` are the formats that the client's Accept allows, best first."""
    if not source_format.is_loaded:
        raise invalid_url(f"cannot load {source_format.name}", 422)
    try:
        image = _load(data, source_format)
        source_size = (image.width, image.height)
        if source_format is SVG and options.format in (None, SVG):
            return Rendered(data, SVG, source_size, source_size)
        target = _target(image, source_format, options, preferred, enforced)
        if source_format is not SVG and image.width * image.height > MAX_SOURCE_PIXELS:
            raise Refusal(422, "Invalid source image", "too many pixels")
        image = _resized(image, data, source_format, options)
        if target.name == "avif" and min(image.width, image.height) < AVIF_MIN_SIDE:
            target = BY_NAME["png" if image.hasalpha() else "jpeg"]
        if image.hasalpha() and not target.has_alpha:
            image = image.flatten(background=[255, 255, 255])
        size = (image.width, image.height)
        return Rendered(_encoded(image, target, options), target, source_size, size)
    except pyvips.Error as error:
        reason = str(error.detail or error.message)
        if BAD_IMAGE.search(reason):
            raise Refusal(422, "Broken or unsupported image", reason) from None
        raise Refusal(500, "Internal error", reason) from None


def _target(
    image: pyvips.Image, source_format: Format, options: Options, preferred: list[str], enforced: list[str]
) -> Format:
    asked = options.format
    if asked is None:
        if preferred:
            asked = BY_NAME[preferred[0]]
        elif source_format.name in ("jpeg", "png", "gif"):
            asked = source_format
        else:
            asked = BY_NAME["png" if image.hasalpha() else "jpeg"]
    elif asked is not SVG and enforced:
        asked = BY_NAME[enforced[0]]
    if not asked.is_saved:
        raise invalid_url(f"cannot save {asked.name}", 422)
    return asked


def _load(data: bytes, source_format: Format, shrink: float = 1.0) -> pyvips.Image:
    settings: dict[str, object] = {"access": "sequential"}
    if source_format is SVG:
        # CSS pixels: 96 to the inch, where libvips assumes 72.
        settings |= {"dpi": 96, "scale": 72 / 96 / shrink}
    elif source_format.name == "jpeg":
        settings["shrink"] = int(shrink)
    elif source_format.name == "webp":
        settings["scale"] = 1 / shrink
    return pyvips.Image.new_from_buffer(data, "", **settings)


def _resized(image: pyvips.Image, data: bytes, source_format: Format, options: Options) -> pyvips.Image:
    loads_smaller = source_format.name in ("jpeg", "webp", "svg")
    if image.get_typeof("orientation") and image.get("orientation") > 1:
        # Turning needs the pixels out of order, and a smaller reload would lose the turn.
        image = image.copy_memory().autorot()
        loads_smaller = False
    width, height = image.width, image.height
    todo = plan(width, height, options, is_vector=source_format is SVG)
    horizontal, vertical = todo.horizontal, todo.vertical
    shrink = min(width / max(rounded(width * horizontal), 1), height / max(rounded(height * vertical), 1))
    if source_format.name == "jpeg":
        shrink = max(step for step in (1, 2, 4, 8) if step <= max(shrink, 1))
    if loads_smaller and (shrink > 1 or source_format is SVG):
        image = _load(data, source_format, shrink)
        horizontal *= width / image.width
        vertical *= height / image.height
        horizontal = 1.0 if rounded(image.width * horizontal) == image.width else horizontal
        vertical = 1.0 if rounded(image.height * vertical) == image.height else vertical
    image = _standard_space(image)
    if (horizontal, vertical) != (1, 1):
        image = _scaled(image, horizontal, vertical)
    inner_width = min(todo.crop_width or image.width, image.width)
    inner_height = min(todo.crop_height or image.height, image.height)
    if (inner_width, inner_height) == (image.width, image.height):
        return image
    if options.gravity == "sm":
        return image.copy_memory().smartcrop(inner_width, inner_height)
    left, top = corner(image.width, image.height, inner_width, inner_height, options, todo.dpr)
    return image.crop(left, top, inner_width, inner_height)


def _scaled(image: pyvips.Image, horizontal: float, vertical: float) -> pyvips.Image:
    if not image.hasalpha():
        return image.resize(horizontal, vscale=vertical)
    # Colours of transparent pixels must not bleed into their neighbours.
    band_format = image.format
    return image.premultiply().cast(band_format).resize(horizontal, vscale=vertical).unpremultiply().cast(band_format)


def _standard_space(image: pyvips.Image) -> pyvips.Image:
    if image.interpretation in ("srgb", "rgb", "b-w"):
        return image
    if image.interpretation == "cmyk" and image.get_typeof("icc-profile-data"):
        return image.icc_transform("srgb", embedded=True)
    return image.colourspace("b-w" if image.interpretation == "grey16" else "srgb")


def _encoded(image: pyvips.Image, target: Format, options: Options) -> bytes:
    if image.get_typeof("icc-profile-data"):
        image = image.icc_transform("b-w" if image.interpretation == "b-w" else "srgb", embedded=True)
    quality = options.quality or options.format_quality.get(target.name) or DEFAULT_QUALITY.get(target.name)
    settings: dict[str, object] = {"keep": "none"}
    match target.name:
        case "jpeg":
            settings |= {"Q": quality, "optimize_coding": True}
        case "png":
            settings |= {"filter": "all"}
        case "webp":
            settings |= {"Q": quality, "effort": 4, "preset": "default"}
        case "gif":
            settings |= {"bitdepth": 8}
        case "avif":
            settings |= {"Q": quality, "compression": "av1", "effort": 1}
        case "tiff":
            settings |= {"Q": quality}
    return image.write_to_buffer(target.extension, **settings)
