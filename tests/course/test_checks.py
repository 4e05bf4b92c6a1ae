"""The guard around a learner's answer."""

import pytest
import torch

from slam_course.checks import exercise, require, require_close, require_shape


@exercise("Exercise 9, three")
def three(answer):
    value = require_shape(answer(), (1,), "The answer")
    require(value.item() > 0, "It should be positive.")
    require_close(value, torch.tensor([3.0]), "It should be three.")
    return "Three it is."


def test_a_right_answer():
    verdict = three(lambda: torch.tensor([3.0]))
    assert verdict.passed
    assert repr(verdict) == "Exercise 9, three: right. Three it is."


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (..., "no answer yet"),
        (None, "no answer yet"),
        (lambda: ..., "no answer yet"),
        (lambda: None, "no answer yet"),
        (lambda: 3.0, "is a float; it should be a torch.Tensor"),
        (lambda: torch.zeros(2), r"shape \(2,\); it should have \(1,\)"),
        (lambda: torch.tensor([float("nan")]), "NaN or infinite"),
        (lambda: torch.tensor([-1.0]), "should be positive"),
        (lambda: torch.tensor([2.9]), "should be three"),
        (lambda: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda x: x, "raised TypeError"),
    ],
)
def test_a_wrong_answer_gets_a_sentence(answer, sentence):
    import re

    verdict = three(answer)
    assert not verdict.passed
    assert re.search(sentence, verdict.message)
    assert "not yet" in repr(verdict)


def test_an_answer_cannot_change_the_learners_random_state():
    torch.manual_seed(4)
    state = torch.get_rng_state()

    def seeds():
        torch.manual_seed(0)
        return torch.tensor([3.0])

    assert three(seeds).passed
    assert torch.equal(torch.get_rng_state(), state)
