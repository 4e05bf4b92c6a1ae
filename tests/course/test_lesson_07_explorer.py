"""The explorer of lesson 07: what it draws, from which noise, how it is controlled."""

import pytest
import torch

from slam_course.lesson_07 import explorer as students
from slam_course.lesson_07.explorer import COUNT, SEEDS, STEPS, few_steps, steps_figure
from slam_course.lesson_08.digit_figures import mosaic

SHAPE = (4, 8, 8)


def painter(level, calls=None):
    """Draws grey images from the noise, the steps and the prompt's length."""

    def draw(prompts, noise, steps):
        if calls is not None:
            calls.append((prompts, noise.clone(), steps))
        shade = torch.tanh(noise.mean((1, 2, 3)) * 8 + level + 0.1 * steps + len(prompts[0]) / 50)
        return shade[:, None, None, None].expand(-1, 3, 32, 32)

    return draw


def image_of(fig):
    return torch.as_tensor(fig.axes[0].images[0].get_array())


def test_figure_shows_what_is_drawn_for_the_prompt_from_the_seeds_noise():
    calls = []
    fig = steps_figure(painter(0.1, calls), "student", "a red two", 2, 5, SHAPE)
    [(prompts, noise, steps)] = calls
    assert prompts == ["a red two"] * COUNT
    assert steps == 2
    wanted = torch.randn((COUNT, *SHAPE), generator=torch.Generator().manual_seed(5))
    assert torch.equal(noise, wanted)
    assert torch.equal(image_of(fig), mosaic(painter(0.1)(prompts, wanted, 2), 4))
    assert fig.alt == 'Eight images for "a red two": student, 2 steps, seed 5.'
    assert fig.axes[0].get_title() == '"a red two"\nstudent, 2 steps, seed 5'


def test_one_step_is_singular():
    assert "1 step, seed" in steps_figure(painter(0), "x", "a two", 1, 0, SHAPE).alt


def test_explorer_has_four_controls_and_starts_where_it_is_told():
    box = few_steps({"teacher": painter(0), "student": painter(1)}, first=2)
    *controls, picture, caption = box.children
    assert [c.description for c in controls] == ["network", "digit", "steps", "seed"]
    assert [c.value for c in controls] == ["teacher", "zero", 2, 0]
    assert tuple(controls[2].options) == STEPS
    assert tuple(controls[3].options) == SEEDS
    prompt = "a red zero on a yellow background"
    assert picture.value == steps_figure(painter(0), "teacher", prompt, 2, 0, SHAPE).png()
    assert "teacher, 2 steps, seed 0." in caption.value


def test_every_control_changes_the_picture():
    box = few_steps({"teacher": painter(0), "student": painter(1)})
    *controls, picture, _ = box.children
    for control in controls:
        before = picture.value
        control.value = control.options[control.options.index(control.value) - 1]
        assert picture.value != before, control.description


def test_all_networks_get_the_same_noise():
    calls = []
    box = few_steps({"teacher": painter(0, calls), "student": painter(1, calls)})
    box.children[0].value = "student"
    assert torch.equal(calls[-1][1], calls[0][1])


def test_nothing_keeps_a_gradient():
    seen = []

    def draw(prompts, noise, steps):
        seen.append(torch.is_grad_enabled())
        return painter(0)(prompts, noise, steps)

    steps_figure(draw, "x", "a two", 1, 0, SHAPE)
    assert seen == [False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: steps_figure(painter(0), "x", "a two", 0, 0, SHAPE), "steps is 0"),
        (lambda: steps_figure(painter(0), "x", "a two", 1, -1, SHAPE), "seed is -1"),
        (lambda: few_steps({}), "there are no networks"),
        (lambda: few_steps({"x": painter(0)}, first=3), "first is 3; allowed: 1, 2, 4, 8"),
        (lambda: few_steps({"x": painter(0)}, digits=("ten",)), "digit is 'ten'"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_colours_differ():
    stroke, background = students.COLOURS
    assert stroke != background
