"""Draw the pictures in data/pictures: `python data/make_pictures.py`.

Each is a function that draws on a canvas eight times its size, in black and greys without
anti-aliasing; averaging 8 by 8 blocks then makes smooth edges in whole numbers. No fonts, no
randomness: two runs write the same bytes (another version of the PNG compressor may write other
bytes for the same pixels).

Written for this course, MIT licence like the rest of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw

FOLDER = Path(__file__).resolve().parent / "pictures"
FINE = 8  # canvas pixels per picture pixel and direction
Point = tuple[float, float]


class Canvas:
    """A white sheet; coordinates in picture pixels, y downwards; ink from 0 to 1 (black)."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("L", (width * FINE, height * FINE), 255)
        self.draw = ImageDraw.Draw(self.image)

    def disc(self, centre: Point, radius: float, ink: float = 1.0) -> None:
        """A filled circle."""
        (x, y), r = (c * FINE for c in centre), radius * FINE
        box = [round(x - r), round(y - r), round(x + r), round(y + r)]
        self.draw.ellipse(box, fill=_grey(ink))

    def shape(self, points: Iterable[Point], ink: float = 1.0) -> None:
        """A filled outline."""
        self.draw.polygon([(round(x * FINE), round(y * FINE)) for x, y in points], fill=_grey(ink))

    def stroke(
        self, points: Iterable[Point], width: float, end: float | None = None, ink: float = 1.0
    ) -> None:
        """A round brush along a line, whose width goes evenly from `width` to `end`."""
        points = list(points)
        end = width if end is None else end
        lengths = [math.dist(a, b) for a, b in pairwise(points)]
        total, done = sum(lengths), 0.0
        for ((x0, y0), (x1, y1)), length in zip(pairwise(points), lengths, strict=True):
            dots = max(math.ceil(length * 4), 1)
            for i in range(dots + 1):
                f = i / dots
                w = width + (end - width) * (done + f * length) / total
                self.disc((x0 + f * (x1 - x0), y0 + f * (y1 - y0)), w / 2, ink)
            done += length

    def picture(self) -> Image.Image:
        """The sheet at its final size, in 52 greys (which makes the file smaller)."""
        return self.image.reduce(FINE).point([round(value / 5) * 5 for value in range(256)])


def _grey(ink: float) -> int:
    return round(255 * (1 - ink))


def bezier(*points: Point, n: int = 40) -> list[Point]:
    """A Bezier curve through its first and last control point."""
    curve = []
    for i in range(n + 1):
        t, level = i / n, list(points)
        while len(level) > 1:
            level = [
                ((1 - t) * ax + t * bx, (1 - t) * ay + t * by)
                for (ax, ay), (bx, by) in pairwise(level)
            ]
        curve.append(level[0])
    return curve


def mirrored(points: Iterable[Point], axis: float = 128) -> list[Point]:
    """The points on the other side of a vertical line."""
    return [(2 * axis - x, y) for x, y in points]


def cat() -> Image.Image:
    """A cat's face: outline, round eyes, nose and smile, as bold as a small student needs."""
    canvas = Canvas(256, 256)
    # Half of the outline, from between the ears to the chin.
    half = [
        *bezier((128, 78), (108, 76), (94, 80), n=12),
        *bezier((94, 80), (74, 50), (52, 26), n=12),
        *bezier((52, 26), (36, 64), (36, 112), n=16),
        *bezier((36, 112), (24, 150), (40, 200), (88, 228), (128, 228), n=40),
    ]
    for flip in (list, mirrored):
        canvas.stroke(flip(half), 13)
        canvas.disc(flip([(86, 134)])[0], 17)
        canvas.stroke(flip(bezier((128, 198), (106, 198), (90, 180))), 13)
    canvas.shape([(108, 152), (148, 152), (128, 176)])
    return canvas.picture()


def slam() -> Image.Image:
    """The word SLAM in bold capitals."""
    canvas = Canvas(352, 160)
    width = 17
    canvas.stroke(
        [
            *bezier((76, 42), (58, 18), (20, 20), (20, 52), n=30),
            *bezier((20, 52), (20, 84), (76, 72), (76, 108), n=40),
            *bezier((76, 108), (76, 146), (32, 144), (15, 116), n=30),
        ],
        width,
    )
    canvas.stroke([(106, 30), (106, 133), (150, 133)], width)
    canvas.stroke([(180, 133), (211, 28), (242, 133)], width)
    canvas.stroke([(192, 102), (230, 102)], width - 4)
    canvas.stroke([(272, 133), (275, 30), (304, 98), (333, 30), (336, 133)], width)
    return canvas.picture()


def galaxy() -> Image.Image:
    """A spiral galaxy: two arms that widen and fade outwards from a dense core."""
    canvas = Canvas(256, 208)
    marks = []
    for arm in (0, math.pi):
        for i in range(721):
            f = i / 720
            angle, radius = arm + 1.45 * 2 * math.pi * f, 15 * math.exp(2.03 * f)
            x = 128 + radius * math.cos(angle)
            y = 104 + 0.85 * radius * math.sin(angle)
            marks.append((0.95 - 0.65 * f, (x, y), 4 + 7.5 * f))
    for ink, centre, radius in sorted(marks):
        canvas.disc(centre, radius, ink)
    canvas.disc((128, 104), 18)
    return canvas.picture()


PICTURES: dict[str, Callable[[], Image.Image]] = {"cat": cat, "slam": slam, "galaxy": galaxy}


def main(folder: Path = FOLDER) -> None:
    """Write every picture as a PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        path = folder / f"{name}.png"
        draw().save(path, optimize=True)
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
