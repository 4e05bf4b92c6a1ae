"""Explorers follow their controls and never show a stale figure."""

from types import SimpleNamespace

import ipywidgets
import pytest
import torch

from slam_course.figures import figure
from slam_course.widgets import LiveStudent, explorer


def draw(shape="circle", size=1):
    fig, (ax,) = figure(alt=f"{shape} of size {size}")
    ax.set_title(f"{shape} {size}")
    return fig


def parts(box):
    *controls, picture, caption = box.children
    return controls, picture, caption


def test_moving_a_control_changes_picture_and_description():
    box = explorer(draw, shape=["circle", "square"], size=[1, 2, 3])
    (shape, size), picture, caption = parts(box)
    assert picture.value == draw().png()
    size.value = 3
    assert picture.value == draw(size=3).png()
    shape.value = "square"
    assert picture.value == draw("square", 3).png()
    assert "square of size 3" in caption.value


def test_a_picture_is_drawn_once():
    calls = []

    def counted(size):
        calls.append(size)
        return draw(size=size)

    (size,), _, _ = parts(explorer(counted, size=[1, 2]))
    for value in (2, 1, 2):
        size.value = value
    assert calls == [1, 2]


def test_strings_become_a_menu_and_numbers_a_slider():
    (shape, size), picture, _ = parts(explorer(draw, shape=["a", "b"], size=[1, 2]))
    assert type(shape).__name__ == "Dropdown"
    assert type(size).__name__ == "SelectionSlider"
    assert "slam-explorer-figure" in picture._dom_classes


def test_what_is_slow_says_so_and_waits_for_the_hand():
    said = []

    def slowly(size):
        said.append(box[0].children[-1].value if box else "")
        return draw(size=size)

    box = []
    box.append(explorer(slowly, slow=True, size=[1, 2]))
    (size,), _, caption = parts(box[0])
    assert not size.continuous_update
    size.value = 2
    size.value = 1  # kept: nothing is drawn
    assert said[0] == ""
    assert "drawing …" in said[1]
    assert len(said) == 2
    assert "circle of size 1" in caption.value
    assert parts(explorer(draw, size=[1, 2]))[0][0].continuous_update


@pytest.mark.parametrize("slow", [False, True])
def test_only_the_widgets_that_every_front_end_has(slow):
    """JupyterLab, Notebook, VS Code, Voila and Colab bring these two modules, and no other."""
    box = explorer(draw, slow=slow, shape=["circle", "square"], size=[1, 2, 3])
    kinds, queue = set(), [box]
    while queue:
        widget = queue.pop()
        kinds.add(widget._model_module)
        held = (getattr(widget, name) for name in widget.keys)
        queue += [w for w in held if isinstance(w, ipywidgets.Widget)]
        queue += getattr(widget, "children", ())
    assert kinds == {"@jupyter-widgets/base", "@jupyter-widgets/controls"}


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="'size' has no values"):
        explorer(draw, size=[])


def test_live_student_draws_every_hundred_updates_and_the_first_and_last():
    drawn = []

    def samples(student):
        drawn.append(student)
        return torch.zeros(3, 2)

    live = LiveStudent(samples, updates=250, every=100)
    for update in range(1, 251):
        live(SimpleNamespace(update=update), update)
    assert drawn == [1, 100, 200, 250]
    bar, label = live.box.children[0].children
    assert bar.value == 250
    assert label.value == "250 of 250 updates"
    assert bytes(live.box.children[1].value).startswith(b"\x89PNG")


def test_live_student_shows_the_student_as_it_is():
    live = LiveStudent(lambda student: torch.full((3, 2), student), updates=2, every=1)
    pictures = []
    for update, place in ((1, 0.0), (2, 1.0)):
        live(SimpleNamespace(update=update), place)
        pictures.append(live.box.children[1].value)
    assert pictures[0] != pictures[1]
