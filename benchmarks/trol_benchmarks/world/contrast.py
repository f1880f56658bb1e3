"""Which colours stand out from which backgrounds."""

from __future__ import annotations

import math

from trol_benchmarks.world.scene import COLOURS, Rgb

# Distances in steps of 255, between the colour and the nearest that the background's gradient takes; texture and noise
# come on top and are far weaker.
LEAST_DISTANCE = 90.0
# Strokes are thin, and JPEG halves the resolution of hue: print must differ in brightness too.
LEAST_PRINT_BRIGHTNESS_STEP = 55.0

Background = tuple[Rgb, Rgb]


def distance(colour: Rgb, background: Background) -> float:
    """Euclidean distance in RGB between a colour and the line of colours from one end of a gradient to the other."""
    (r, g, b), ((r0, g0, b0), (r1, g1, b1)) = colour, background
    dr, dg, db = r1 - r0, g1 - g0, b1 - b0
    length = dr * dr + dg * dg + db * db
    along = ((r - r0) * dr + (g - g0) * dg + (b - b0) * db) / length if length else 0.0
    along = min(max(along, 0.0), 1.0)
    return math.sqrt((r - r0 - along * dr) ** 2 + (g - g0 - along * dg) ** 2 + (b - b0 - along * db) ** 2)


def brightness(colour: Rgb) -> float:
    """0..255, weighted as the eye does (ITU-R BT.601)."""
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue


def thing_stands_out(colour: Rgb, background: Background) -> bool:
    """Whether a thing, or a bar, of this colour can be told from the background."""
    return distance(colour, background) >= LEAST_DISTANCE


def print_stands_out(colour: Rgb, background: Background) -> bool:
    """Whether text of this colour can be read on the background."""
    darkest, brightest = sorted(brightness(end) for end in background)
    own = brightness(colour)
    step = max(darkest - own, own - brightest)  # negative where the gradient passes the colour's brightness
    return step >= LEAST_PRINT_BRIGHTNESS_STEP and thing_stands_out(colour, background)


def colours_of_things(background: Background) -> list[str]:
    """The names of the colours in which a thing, or a bar, can be told from the background."""
    return [name for name, rgb in COLOURS.items() if thing_stands_out(rgb, background)]


def colours_of_prints(background: Background) -> list[str]:
    """The names of the colours in which text can be read on the background."""
    return [name for name, rgb in COLOURS.items() if print_stands_out(rgb, background)]
