"""What size to scale to and what to cut out, in imgproxy's arithmetic."""

import math
from dataclasses import dataclass

from options import Options


@dataclass(frozen=True)
class Plan:
    horizontal: float
    vertical: float
    dpr: float
    crop_width: int
    crop_height: int


def rounded(value: float) -> int:
    """Half away from zero, where Python would round to even."""
    return math.floor(value + 0.5)


def plan(width: int, height: int, options: Options, is_vector: bool) -> Plan:
    shrink_x, shrink_y = _shrinks(width, height, options)
    dpr = options.dpr
    if not options.enlarge and not is_vector:
        smallest = min(shrink_x, shrink_y)
        if smallest < 1:
            shrink_x, shrink_y = shrink_x / smallest, shrink_y / smallest
            dpr /= smallest
        dpr = min(dpr, shrink_x, shrink_y)
    scale_x = 1 / min(shrink_x / dpr, width)
    scale_y = 1 / min(shrink_y / dpr, height)
    target = rounded(options.width * dpr), rounded(options.height * dpr)
    scaled = rounded(width * scale_x), rounded(height * scale_y)
    crop = _fill_down(target, scaled) if options.resizing_type == "fill-down" and not options.enlarge else target
    return Plan(scale_x, scale_y, dpr, *crop)


def _shrinks(width: int, height: int, options: Options) -> tuple[float, float]:
    to_width, to_height = options.width or width, options.height or height
    x, y = width / to_width, height / to_height
    if (x, y) == (1, 1):
        return x, y
    kind = options.resizing_type
    if kind == "auto":
        same_shape = (width >= height) == (to_width >= to_height)
        kind = "fill" if same_shape else "fit"
    if kind == "force":
        return x, y
    if not options.width:
        return y, y
    if not options.height:
        return x, x
    both = max(x, y) if kind == "fit" else min(x, y)
    return both, both


def _fill_down(target: tuple[int, int], scaled: tuple[int, int]) -> tuple[int, int]:
    """The target's aspect ratio inside an image that stayed smaller than the target."""
    over_x, over_y = target[0] / scaled[0], target[1] / scaled[1]
    if over_x > over_y and over_x > 1:
        return scaled[0], rounded(scaled[0] * target[1] / target[0])
    if over_y > over_x and over_y > 1:
        return rounded(scaled[1] * target[0] / target[1]), scaled[1]
    return target


def corner(
    width: int, height: int, inner_width: int, inner_height: int, options: Options, dpr: float
) -> tuple[int, int]:
    """Where the inner rectangle begins, by gravity."""
    gravity = options.gravity
    if gravity == "fp":
        left = round(width * options.gravity_x) - inner_width // 2
        top = round(height * options.gravity_y) - inner_height // 2
    else:
        off_x = _offset(options.gravity_x, width, dpr)
        off_y = _offset(options.gravity_y, height, dpr)
        left = round((width - inner_width + 1) / 2) + off_x
        top = round((height - inner_height + 1) / 2) + off_y
        if gravity in ("no", "noea", "nowe"):
            top = off_y
        if gravity in ("so", "soea", "sowe"):
            top = height - inner_height - off_y
        if gravity in ("ea", "noea", "soea"):
            left = width - inner_width - off_x
        if gravity in ("we", "nowe", "sowe"):
            left = off_x
    return max(0, min(left, width - inner_width)), max(0, min(top, height - inner_height))


def _offset(offset: float, side: int, dpr: float) -> int:
    """Pixels from 1 upwards, a share of the side below."""
    return round(offset * dpr) if abs(offset) >= 1 else round(side * offset)
