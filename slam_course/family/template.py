"""A method of your own to start from: copy this file, then change what it draws and compares."""

import torch

from slam_course.family.base import Method


class MyMethod(Method):
    """Consistency distillation with a hop drawn log-uniformly between 1 and k = T/N timesteps."""

    name = "log-uniform hop"
    # Beside these: pieces, loss_name ("l2" or "huber"), two_times (a second time for the network).
    lr, ema_rate, subpaths = 4e-3, 0.9, 20

    def draw(self, x0, generator):
        """All that is random: a sub-path of the grid, a share in [0, 1), and noise like x0."""
        index = torch.randint(self.subpaths, (len(x0),), generator=generator)
        share = torch.rand(len(x0), generator=generator)
        return index, share, torch.randn(x0.shape, generator=generator)

    def loss(self, x0, batch, networks):
        """A scalar, between the student at t and its moving average, the target, at s < t."""
        index, share, noise = batch
        t, end = self.grid.ends(index)  # (B,) each
        s = t - (t - end).float() ** share  # k^share timesteps cleaner
        x_t = self.schedule.at(t).mix(x0, noise)  # alpha x0 + sigma noise, (B, D)
        x_s = self.move(self.teach(networks, x_t, t), s)  # one DDIM step of the teacher
        with torch.no_grad():  # only the student is trained
            y = self.solve(networks.target, x_s, s)
        return self.distance(self.solve(networks.student, x_t, t), y)

    # Inherited: solve, one jump from t to 0; sample, which solves, adds noise, and solves again.
