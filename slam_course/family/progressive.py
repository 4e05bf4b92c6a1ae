r"""Progressive distillation: one step of the student for two of its teacher, again and again.

.. math:: J_\theta(x_t, t \to s) \to
    J(J(x_t, t \to u), u \to s), \qquad u = (t + s)/2,

where J is the student of the stage before, at first the teacher. Each stage halves the number of
steps, from 2n to n. Source: Salimans and Ho 2022 (arXiv 2202.00512), algorithm 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slam_course.family.base import Counted, Method, Trio


class Progressive(Method):
    """Stages of 32, 16, 8, 4, 2 and 1 steps, of equal shares of the budget."""

    name = "progressive distillation"
    stages = (32, 16, 8, 4, 2, 1)
    restarts = len(stages)

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.done: list[Counted] = []  # the frozen student of every finished stage

    def draw(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A place among a stage's steps, in [0, 1), and noise."""
        return torch.rand(len(x0), generator=generator), torch.randn(x0.shape, generator=generator)

    def loss(self, x0: Tensor, batch: tuple[Tensor, Tensor], networks: Trio) -> Tensor:
        """Between v of the student and v of the straight line to where two steps lead."""
        place, noise = batch
        stage = int(networks.used * len(self.stages))
        if stage > len(self.done):
            self.done.append(networks.freeze(networks.target))
        steps = self.stages[stage]
        hop = (self.T - 1) / steps
        t = (1 + (place * steps).floor()) * hop
        s, u = t - hop, t - hop / 2
        s = s.clamp(min=0)
        level_t, level_s = self.schedule.at(t), self.schedule.at(s)
        x_t = level_t.mix(x0, noise)
        x = x_t
        for time, following in ((t, u), (u, s)):
            with torch.no_grad():
                prediction = (
                    self.predict(self.done[-1], x, time) if self.done
                    else self.teach(networks, x, time)
                )  # fmt: skip
                x = self.move(prediction, following)
        v = self.v(self.line(x_t, level_t, x, level_s), level_t)
        return self.distance(self.v(self.predict(networks.student, x_t, t), level_t), v)

    def student_of(self, student: Counted, steps: int) -> Counted:
        """The student of the stage with so many steps, as far as training has come."""
        where = self.stages.index(steps) if steps in self.stages else 0
        return self.done[where] if where < len(self.done) else student

    def sample(
        self, student: Counted, x: Tensor, steps: int, generator: torch.Generator
    ) -> Tensor:
        """The steps of the stage of n."""
        return self.walk(self.student_of(student, steps), x, self.spaced(steps))

    def solve(self, student: Counted, x: Tensor, t: Tensor) -> Tensor:
        """In the 8 steps of its stage, and a shorter one, which was not trained, at the start."""
        student, hop, t = self.student_of(student, 8), (self.T - 1) / 8, t.to(x.dtype)
        for i in range(7, -1, -1):
            s = torch.minimum(t, torch.full_like(t, i * hop))
            x = torch.where((s < t)[:, None], self.jump(student, x, t, s), x)
            t = s
        return x
