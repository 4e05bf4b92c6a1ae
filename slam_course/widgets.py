"""Interactive explorers: sliders and menus beside a figure that follows them.

An explorer redraws into one image widget: no cell output, no flicker, alike in every front end.
Pictures that were drawn once are kept.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import ipywidgets

from slam_course.figures import CourseFigure
from slam_edu._validation import check_choice


def explorer(
    draw: Callable[..., CourseFigure],
    *,
    slow: bool = False,
    first: Mapping[str, object] | None = None,
    **controls: Sequence,
) -> ipywidgets.VBox:
    """A figure with one control per keyword argument of ``draw(**values) -> CourseFigure``.

    ``draw`` must depend on its arguments alone. Each of ``controls`` is the sequence of values of
    an argument: strings become a menu, everything else a slider. ``first`` are values that are
    shown first, where they are not the first of their sequence. ``slow`` is for a figure that
    takes longer than 0.3 s, up to which an answer feels immediate: a slider then waits until it is
    let go, and the words below say that it draws.

    Raises:
        ValueError: for an empty sequence of values, or a first value that is not in its sequence.
    """
    first = first or {}
    made = {name: _control(name, each, first.get(name), slow) for name, each in controls.items()}
    # Its own size: stretched to the width of the page, the picture would look soft.
    layout = ipywidgets.Layout(align_self="flex-start", max_width="100%")
    picture = ipywidgets.Image(format="png", layout=layout)
    picture.add_class("slam-explorer-figure")
    caption = ipywidgets.HTML()

    @lru_cache(maxsize=256)
    def rendered(values: tuple) -> tuple[bytes, str]:
        if slow and picture.value:
            describe("drawing …")
        drawn = draw(**dict(zip(made, values, strict=True)))
        return drawn.png(), drawn.alt

    def describe(words: str) -> None:
        # The description changes with the picture: it is what a screen reader has of it.
        style = 'style="color: #666; font-size: 90%"'
        caption.value = f'<span {style} aria-live="polite">{words}</span>'

    def redraw(_change: object = None) -> None:
        png, alt = rendered(tuple(control.value for control in made.values()))
        picture.value = png
        describe(alt)

    for control in made.values():
        control.observe(redraw, names="value")
    redraw()
    box = ipywidgets.VBox([*made.values(), picture, caption])
    box.add_class("slam-explorer")
    return box


def _control(
    name: str, values: Sequence, first: object = None, slow: bool = False
) -> ipywidgets.Widget:
    """A menu for strings, a slider for everything else."""
    values = list(values)
    if not values:
        raise ValueError(f"the control {name!r} has no values; allowed: a sequence of one or more")
    first = values[0] if first is None else first
    check_choice(first, values, f"first {name}")
    layout = ipywidgets.Layout(width="420px")
    given = {"options": values, "value": first, "description": name.replace("_", " ")}
    if isinstance(values[0], str):
        return ipywidgets.Dropdown(**given, layout=layout)
    return ipywidgets.SelectionSlider(**given, layout=layout, continuous_update=not slow)


def experiment(run: Callable[..., CourseFigure], **controls: Sequence) -> ipywidgets.VBox:
    """Controls, a button that runs an experiment with their values, and its figure.

    ``run(on_progress, **values) -> CourseFigure`` calls ``on_progress(share)`` with a number from
    0 to 1 as it goes on. Nothing runs before the button is pressed; the same values run once; an
    error is shown under the controls, which are those of :func:`explorer`.
    """
    made = {name: _control(name, values) for name, values in controls.items()}
    button = ipywidgets.Button(description="run", button_style="primary")
    bar = ipywidgets.FloatProgress(max=1.0, layout=ipywidgets.Layout(width="300px"))
    note = ipywidgets.HTML("choose, then press run")
    picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%"))
    picture.add_class("slam-experiment-figure")
    kept: dict[tuple, tuple[bytes, str]] = {}

    def on_progress(share: float) -> None:
        bar.value = share

    def pressed(_button: object) -> None:
        values = tuple(control.value for control in made.values())
        button.disabled, note.value = True, "running"
        try:
            if values not in kept:
                drawn = run(on_progress, **dict(zip(made, values, strict=True)))
                kept[values] = drawn.png(), drawn.alt
            picture.value, note.value = kept[values]
            bar.value = 1.0
        except (ValueError, ArithmeticError) as error:
            note.value = f"<b>{type(error).__name__}:</b> {html.escape(str(error))}"
        finally:
            button.disabled = False

    button.on_click(pressed)
    box = ipywidgets.VBox([*made.values(), ipywidgets.HBox([button, bar]), note, picture])
    box.add_class("slam-experiment")
    return box
