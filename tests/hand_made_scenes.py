"""Scenes of the drawn world made by hand, for tests of what is said about them."""

from __future__ import annotations

from collections.abc import Sequence

from trol_benchmarks.world.scene import COLOURS, Bar, Chart, Look, Print, Scene, Thing

LOOK = Look(side=168, background=((250, 250, 250), (250, 250, 250)))
Place = tuple[float, float]


def objects(*names: str, at: Sequence[Place] = ()) -> Scene:
    """Things such as "red circle", at the places given or on a line from left to right, 0.15 apart."""
    return Scene(LOOK, things=_things(names, at))


def printed(text: str, colour: str = "black", beside: Sequence[str] = ()) -> Scene:
    """One word or number in the middle, and things beside it."""
    return Scene(LOOK, things=_things(beside, ()), prints=(print_at(text, colour, 0.5),))


def print_at(text: str, colour: str, x: float) -> Print:
    return Print(text, colour, COLOURS[colour], "dejavu-sans", x, 0.5, height=0.1)


def chart(**heights: float) -> Scene:
    """Bars by colour, from left to right."""
    bars = tuple(Bar(colour, COLOURS[colour], height) for colour, height in heights.items())
    return Scene(LOOK, chart=Chart(bars, (0.1, 0.1, 0.9, 0.9), (0, 0, 0)))


def _things(names: Sequence[str], at: Sequence[Place]) -> tuple[Thing, ...]:
    places = at or [(0.1 + 0.15 * number, 0.5) for number in range(len(names))]
    split = [name.split() for name in names]
    return tuple(
        Thing(shape, colour, COLOURS[colour], x, y, size=0.14)
        for (colour, shape), (x, y) in zip(split, places, strict=True)
    )
