"""Explorers follow their controls and never show a stale figure."""

import ipywidgets
import pytest

from slam_course.figures import figure
from slam_course.widgets import explorer


def draw(shape="circle", size=1):
    fig, (ax,) = figure(alt=f"{shape} of size {size}")
    ax.set_title(f"{shape} {size}")
    return fig


def test_moving_a_control_changes_picture_and_description():
    calls = []

    def counted(shape, size):
        calls.append((shape, size))
        return draw(shape, size)

    box = explorer(counted, first={"size": 2}, shape=["circle", "square"], size=[1, 2, 3])
    shape, size, picture, caption = box.children
    assert (type(shape).__name__, type(size).__name__) == ("Dropdown", "SelectionSlider")
    assert picture.value == draw(size=2).png()
    size.value = 3
    shape.value = "square"
    assert picture.value == draw("square", 3).png()
    assert "square of size 3" in caption.value
    shape.value = "circle"
    assert calls == [("circle", 2), ("circle", 3), ("square", 3)]  # a picture is drawn once


def test_what_is_slow_shows_that_it_draws_and_waits_for_the_hand():
    shown, box = [], []

    def slowly(size):
        shown.append(box[0].children[-1].value if box else "")
        return draw(size=size)

    box.append(explorer(slowly, slow=True, size=[1, 2]))
    size, _, caption = box[0].children
    assert not size.continuous_update
    size.value = 2
    size.value = 1  # kept: nothing is drawn
    assert shown[0] == ""
    assert "drawing …" in shown[1]
    assert len(shown) == 2
    assert "circle of size 1" in caption.value
    assert explorer(draw, size=[1, 2]).children[0].continuous_update


def test_only_the_widgets_that_every_front_end_has():
    """JupyterLab, Notebook, VS Code, Voila and Colab bring these two modules, and no other."""
    queue, kinds = [explorer(draw, shape=["circle", "square"], size=[1, 2, 3])], set()
    while queue:
        widget = queue.pop()
        kinds.add(widget._model_module)
        held = (getattr(widget, name) for name in widget.keys)
        queue += [w for w in held if isinstance(w, ipywidgets.Widget)]
        queue += getattr(widget, "children", ())
    assert kinds == {"@jupyter-widgets/base", "@jupyter-widgets/controls"}


def test_values_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="'size' has no values"):
        explorer(draw, size=[])
    with pytest.raises(ValueError, match="first size is 4; allowed: 1, 2"):
        explorer(draw, first={"size": 4}, size=[1, 2])
