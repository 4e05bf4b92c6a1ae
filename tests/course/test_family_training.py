"""One student of the family: what it costs, how it starts, and the rows of its results."""

import math

import pytest
import torch

from slam_course.family import METHODS, training
from slam_course.family.results import Choice, Results, Row, read_rows, rows_text
from slam_edu.toy.mixture import GaussianMixture
from slam_edu.toy.networks import LevelMLP
from tests.course import test_family as family
from tests.helpers import TinyNet, assert_near, noise

pytestmark = family.pytestmark
CD, PCM = family.CD, family.PCM


def test_evaluations_are_counted():
    nets = family.networks(TinyNet(1), TinyNet(2), TinyNet(3))
    x, t = noise(7, 2), torch.full((7,), 500.0, dtype=torch.float64)
    frozen = nets.freeze(nets.target)
    with torch.no_grad():
        nets.teacher(x, t)
        frozen(x, t)
    nets.student(x, t).sum().backward()
    with torch.autograd.forward_ad.dual_level():
        nets.student(torch.autograd.forward_ad.make_dual(x, x), t)
    calls = nets.student.calls
    assert (calls.forward, calls.backward, calls.tangent) == (14, 7, 7)
    assert nets.cost() == 7 + 7 + 14 + 2 * 7 + 7
    for network in (nets.teacher, nets.target, frozen):
        with pytest.raises(RuntimeError, match="a gradient reached the"):
            network(x.clone().requires_grad_(), t).sum().backward()


# Evaluations of a sample: teacher, target or copy, the student's 1 + 2, tangent.
COSTS = {
    CD: 1 + 1 + 3, f"{CD}, Heun teacher": (2 + 1 + 3) / 2, "SLAM, middle slope": 1 + 1 + 3,
    family.PERFLOW: 12 + 3, family.PROGRESSIVE: 2 + 3, family.SHORTCUT: 3 / 4 + 2 / 4 + 3,
    "MeanFlow": 1 + 3 + 1 / 4, family.SCM: 1 + 3 + 1,
}  # fmt: skip


@pytest.mark.parametrize("name", COSTS)
def test_equal_cost_buys_updates(name):
    """Of consistency distillation, 10,000 buy 2,000."""
    method = METHODS[name](family.SD)
    student = LevelMLP(8, 1, gamma=method.gamma_input, generator=family.generator()).double()
    nets, size = family.networks(student), round(256 * method.share)
    found = training._affordable(method, nets, family.ONE, size, 10_000 * 256)
    assert found == round(10_000 / COSTS[name])
    assert nets.cost() == 0


@pytest.fixture
def one(monkeypatch):
    """One Gaussian as a data set, and a diffusion model of a moment's training."""
    monkeypatch.setattr(training, "INIT", training.INIT.replace(updates=20))
    monkeypatch.setattr(
        training, "make", lambda name: GaussianMixture(family.MU.float(), family.WIDTH)
    )
    training.diffusion_model.cache_clear()
    yield "one"
    training.diffusion_model.cache_clear()


@family.names
def test_students_start_as_the_diffusion_model(one, name):
    student = next(training.train_one(METHODS[name], one, 0, updates=1, batch=16, lr=1e-12))
    x, t = noise(16, 2, dtype=torch.float32), torch.linspace(1, 999, 16)
    expected = training.diffusion_model(one, 0)(x, t)
    for gamma in (0.0, 0.5, 1.0):
        given = torch.full((16,), gamma) if student.method.gamma_input else None
        assert_near(student.network(x, t, None, given), expected, rtol=0, atol=1e-6)


def test_one_seed_gives_one_student_and_measuring_it_costs_nothing(one):
    x, t, found = noise(16, 2, dtype=torch.float32), torch.linspace(1, 999, 16), []
    for seed in (0, 0, 1):
        for student in training.train_one(METHODS[CD], one, seed, cost=15, batch=16):
            output = student.network(x, t).detach()
        assert (student.updates, student.cost) == (3, 3 * 5)
        found.append(output)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_rows_are_read_as_they_were_written(tmp_path):
    chosen, path = (
        Choice(method=PCM, pieces=4, lr=1 / 3, loss="huber"),
        tmp_path / "runs.csv",
    )
    rows = [
        Row(chosen, "ring", 1, 500, False, {"sw_1": 0.125}, 5000.0, 1.5),
        Row(chosen, "ring", 1, 2000, True, {"sw_1": 0.5, "map_999": 0.25}, 10_000.0, 2.5),
    ]
    assert read_rows(path) == []
    path.write_text(rows_text(rows))
    assert read_rows(path) == rows
    path.write_text(rows_text(rows).replace("0.125", "much"))
    with pytest.raises(ValueError, match=r"runs.csv, line 2: .*much"):
        read_rows(path)


def test_ratio_of_a_worked_example():
    """Twice and eight times as far on two seeds: 4, and Student's t for one degree of freedom."""
    a, b = Choice(method="a"), Choice(method="b")
    distances = {(a, 0): 2.0, (a, 1): 16.0, (a, 2): 1.0, (b, 0): 1.0, (b, 1): 2.0}
    rows = [Row(of, "ring", seed, 9, True, {"sw_1": d}) for (of, seed), d in distances.items()]
    results = Results(rows)
    ratio = results.ratio(a, b, ["ring"], "sw_1")
    assert ratio.value == pytest.approx(4)
    assert math.log(4 / ratio.low, 2) == pytest.approx(12.7062, rel=1e-5)
    assert results.mean(b, ["ring"], "sw_1") == pytest.approx(2**0.5)
    assert results.seeds(a, ["ring"]) == 3
