"""Pictures of the course, in one colour grammar (see :mod:`slam_edu.plotting.base`).

- ``base``: the colours, figures that carry alternative text, parts of a figure
- ``demo``: the first result: a picture, its teacher, its student
- ``diffusion``: noise levels, densities, scores, trajectories (lesson 01)
- ``solvers``: few steps, orders, errors (lesson 02)
"""

from slam_edu.plotting.base import (
    COLORS,
    LIMIT,
    CourseFigure,
    field,
    figure,
    grid_points,
    paths,
    plane,
    points,
    snapshots,
)
from slam_edu.plotting.diffusion import (
    bends,
    denoised,
    densities,
    density_panel,
    end_colors,
    noise_levels,
    plane_paths,
    solution_regions,
    staircase,
    two_coordinates,
    warped_grid,
)
from slam_edu.plotting.solvers import (
    distance_by_evaluations,
    error_along_the_path,
    evaluations,
    few_step_paths,
    hops_and_path,
    middle_level,
    orders,
    sample_strip,
)

__all__ = [
    "COLORS",
    "LIMIT",
    "CourseFigure",
    "bends",
    "denoised",
    "densities",
    "density_panel",
    "distance_by_evaluations",
    "end_colors",
    "error_along_the_path",
    "evaluations",
    "few_step_paths",
    "field",
    "figure",
    "grid_points",
    "hops_and_path",
    "middle_level",
    "noise_levels",
    "orders",
    "paths",
    "plane",
    "plane_paths",
    "points",
    "sample_strip",
    "snapshots",
    "solution_regions",
    "staircase",
    "two_coordinates",
    "warped_grid",
]
