"""Lesson 10: checks, figures and explorer."""

import pytest
import torch

from slam_course.family import METHODS
from slam_course.family.costs import cost
from slam_course.family.results import Choice, Results, Row
from slam_course.family.template import MyMethod
from slam_course.family.training import STEPS
from slam_course.lesson_10 import explorer, figures
from slam_course.lesson_10.checks import COUNTED, costs, mean_slope, own_method
from tests.course import trying

# torch loads its rules of forward-mode differentiation through TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
CD, HEUN, PROGRESSIVE = COUNTED
COSTS = {CD: 5, HEUN: 6, PROGRESSIVE: 5}


def slope(e_1, e_2, t, u, s):
    return ((t - u) * e_1 + (u - s) * e_2) / (t - s)


def by_jumps(e_1, e_2, t, u, s):
    z_u = (u - t) * e_1
    return (z_u + (s - u) * e_2) / (s - t)


class Silent(MyMethod):
    def loss(self, x0, batch, networks):
        return ...


class Fixed(MyMethod):
    name = "fixed"

    def draw(self, x0, generator):
        return torch.zeros(len(x0)).long(), torch.zeros(len(x0)), torch.zeros_like(x0)


GROUPS = [
    (
        costs,
        [COSTS, {name: float(value) for name, value in COSTS.items()}],
        [
            ({**COSTS, HEUN: ...}, "no answer yet"),
            ({CD: 5}, "dictionary with the keys"),
            ([5, 6, 5], "dictionary with the keys"),
            ({**COSTS, CD: 3}, f"{CD}: The backward pass"),
            ({**COSTS, PROGRESSIVE: 4}, f"{PROGRESSIVE}: One evaluation short"),
            ({**COSTS, HEUN: 8}, f"{HEUN}: Is the backward pass counted"),
            ({**COSTS, HEUN: 5.5}, f"{HEUN}: 5.5 is not what is counted"),
            ({**COSTS, HEUN: "6"}, "is a str; it should be one number"),
        ],
    ),
    (
        mean_slope,
        [slope, by_jumps],
        [
            *trying.formulas("e_1, e_2, t, u, s", globals(), {
                "(e_1 + e_2) / 2": "The plain mean",
                "slope(e_2, e_1, t, u, s)": "weights are swapped",
                "slope(e_1, e_2, t, u, s) * (t - s)": "This is how far z moves",
                "-slope(e_1, e_2, t, u, s)": "The sign is wrong",
                "e_1 + e_2": "The sum of the slopes",
                "(t * e_1 - s * e_2) / (t - s)": "u has no say",
                "0.9 * slope(e_1, e_2, t, u, s)": "values do not",
                "slope(e_1, e_2, t, u, s).detach()": "comes back to",
            }),
        ],
    ),
    (
        own_method,
        [MyMethod, *(METHODS[name] for name in COUNTED)],
        [
            (3, "Give the class itself"),
            (object, "Give the class itself"),
            (Silent, "no answer yet"),
            (Fixed, "is the same for another seed"),
        ],
    ),
]  # fmt: skip
test_accepts, test_rejects = trying.tests(GROUPS)


def test_costs_of_the_exercise_are_the_counted_ones():
    assert {name: cost(name) for name in COUNTED} == COSTS
    # One window, crossed in N steps of the teacher.
    assert cost("piecewise rectified flow (PeRFlow)", 50, 1) == 50 + 3


@pytest.fixture(scope="module")
def study():
    """Two settings and a learner's on two data sets, with known distances."""
    settings = {name: Choice(method=name) for name in (CD, "SLAM, middle slope", "my method")}
    rows = [
        Row(setting, data, seed, 9, True, {
            **{f"sw_{n}": (1 + i) * (1 + 0.1 * seed * i) / n for n in STEPS},
            **{f"map_{t}": 1.0 + i + seed for t in (999, 499, 99)},
        })
        for i, setting in enumerate(settings.values())
        for data in ("ring", "two_moons") for seed in range(3)
    ]  # fmt: skip
    return Results(rows), settings


def test_figures(study):
    results, settings = study
    trying.described(figures.jumps())
    fig = figures.board(results, settings, ["ring"], own="my method")
    trying.described(fig)
    rows = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert rows == ["SLAM, middle slope", "my method"]  # best first
    assert [ax.get_title() for ax in fig.axes] == ["1 step", "2 steps", "4 steps", "8 steps"]
    steps = figures.over_steps(results, settings, ["ring"], 0.02, {"a": [CD], "b": ["my method"]})
    trying.described(steps)
    assert "consistency distillation from 1.00 to 0.13" in steps.alt


def test_explorer(study):
    results, settings = study
    box = explorer.board(results, settings, ["ring"])
    *controls, _, caption = box.children
    assert "ratio" in caption.value.lower()
    controls[-1].value = "error to f*"
    assert controls[-1].value == "error to f*"
