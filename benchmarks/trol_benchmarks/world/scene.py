"""What a picture of the drawn world shows, as data: things, printed text, a bar chart, and how they look.

Lengths and places are fractions of the picture's side, from its upper left corner; angles are degrees, anticlockwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trol_runtime.errors import UsageError

Rgb = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon")
TEXTURES = ("stripes", "dots", "speckle")
COLOURS: dict[str, Rgb] = {
    "red": (220, 30, 35),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 45),
    "green": (35, 150, 60),
    "blue": (35, 75, 215),
    "purple": (140, 45, 165),
    "black": (20, 20, 22),
    "white": (248, 248, 246),
}
# By name, the file that comes with matplotlib.
FONTS = {
    "dejavu-sans": "DejaVuSans.ttf",
    "dejavu-sans-bold": "DejaVuSans-Bold.ttf",
    "dejavu-sans-mono": "DejaVuSansMono.ttf",
    "dejavu-serif": "DejaVuSerif.ttf",
    "dejavu-serif-bold": "DejaVuSerif-Bold.ttf",
    "stix": "STIXGeneral.ttf",
    "stix-bold": "STIXGeneralBol.ttf",
    "computer-modern-sans": "cmss10.ttf",
    "computer-modern-bold": "cmb10.ttf",
}


@dataclass(frozen=True)
class Thing:
    """A coloured shape: its centre, the diameter of the circle around it, and its turn."""

    shape: str
    colour: str
    rgb: Rgb  # the colour as drawn: a shade of what its name says
    x: float
    y: float
    size: float
    angle: float = 0.0

    def __post_init__(self) -> None:
        require_known("shape", self.shape, SHAPES)
        require_known("colour", self.colour, COLOURS)
        require_positive("the size of a thing", self.size)

    @property
    def name(self) -> str:
        """How questions and answers call it: "red circle"."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Print:
    """A printed word or number: its centre, the height of its capitals, and its turn."""

    text: str
    colour: str
    rgb: Rgb
    font: str  # a key of FONTS
    x: float
    y: float
    height: float
    angle: float = 0.0

    def __post_init__(self) -> None:
        require_known("colour", self.colour, COLOURS)
        require_known("font", self.font, FONTS)
        require_positive("the height of a print", self.height)

    @property
    def is_number(self) -> bool:
        return self.text.isdecimal()


@dataclass(frozen=True)
class Bar:
    """A bar of a chart: its height as a fraction of the chart's."""

    colour: str
    rgb: Rgb
    height: float

    def __post_init__(self) -> None:
        require_known("colour", self.colour, COLOURS)
        require_positive("the height of a bar", self.height)


@dataclass(frozen=True)
class Chart:
    """A bar chart in the box left, top, right, bottom; every bar has a colour of its own."""

    bars: tuple[Bar, ...]
    box: tuple[float, float, float, float]
    rgb: Rgb  # of the axes

    def __post_init__(self) -> None:
        if not self.bars:
            raise UsageError("a chart has no bars, expected one or more")


@dataclass(frozen=True)
class Texture:
    """A pattern on the background, lighter and darker than it by up to `depth` steps of 255.

    pattern: one of TEXTURES
    period:  from one stripe, dot or speckle to the next
    """

    pattern: str
    period: float
    depth: float
    angle: float = 0.0

    def __post_init__(self) -> None:
        require_known("texture", self.pattern, TEXTURES)
        require_positive("the period of a texture", self.period)


@dataclass(frozen=True)
class Look:
    """What the picture looks like beside what it shows.

    side:       pixels
    background: colours at the upper left and at the lower right corner
    texture:    on the background; None for none
    noise:      standard deviation of the noise on every channel, in steps of 255
    quality:    of the JPEG that the picture went through; None for none
    seed:       of the noise, and of where speckles lie
    """

    side: int
    background: tuple[Rgb, Rgb]
    texture: Texture | None = None
    noise: float = 0.0
    quality: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive("the side of a picture", self.side)


@dataclass(frozen=True)
class Scene:
    """One picture: things, or printed text with or without things, or a chart alone."""

    look: Look
    things: tuple[Thing, ...] = ()
    prints: tuple[Print, ...] = ()
    chart: Chart | None = None


def require_known(what: str, name: str, known: Iterable[str]) -> None:
    """Raise UsageError, listing what is known, unless `name` is."""
    names = list(known)
    if name not in names:
        raise UsageError(f"there is no {what} {name!r} in the drawn world; known are {', '.join(names)}")


def require_positive(what: str, value: float) -> None:
    """Raise UsageError unless `value` is a number above 0."""
    if not value > 0:
        raise UsageError(f"{what} is {value:g}, expected more than 0")
