"""Two dimensions, where nothing has to be believed: exact teachers, solutions and densities.

In images, nobody knows the true score, so an experiment there cannot tell a bad solver from a bad
network. The data sets here are Gaussian mixtures, for which three things are known exactly:

- the score and the perfect denoiser at every level (:class:`GaussianMixture`), so a teacher makes
  no error and what is left of an error is the method's;
- the density (:meth:`GaussianMixture.log_density`), to hold samples against;
- the solution map of the PF-ODE (:func:`solution_map`), which is what a consistency model or a
  SLAM student should learn, known to 1e-5.

:data:`DATASETS` holds the usual shapes, :func:`picture` the course's own pictures, and
:func:`from_image` turns any PNG or JPEG into a mixture. All are scaled to mean 0 and variance 1.
"""

from slam_edu.toy.data import (
    DATASETS,
    PICTURES,
    checkerboard,
    make,
    picture,
    pinwheel,
    ring,
    spiral,
    two_moons,
)
from slam_edu.toy.image import MAX_COMPONENTS, MAX_PIXELS, PictureError, from_image
from slam_edu.toy.mixture import GaussianMixture
from slam_edu.toy.solution import Solution, solution_map

__all__ = [
    "DATASETS",
    "MAX_COMPONENTS",
    "MAX_PIXELS",
    "PICTURES",
    "GaussianMixture",
    "PictureError",
    "Solution",
    "checkerboard",
    "from_image",
    "make",
    "picture",
    "pinwheel",
    "ring",
    "solution_map",
    "spiral",
    "two_moons",
]
