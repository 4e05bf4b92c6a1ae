"""Pictures of the course, in one colour grammar (see :mod:`slam_edu.plotting.base`).

- ``base``: the colours, figures that carry alternative text, parts of a figure
- ``demo``: the first result: a picture, its teacher, its student
- ``diffusion``: noise levels, densities, scores, trajectories (lesson 01)
- ``solvers``: few steps, orders, errors (lesson 02)
- ``consistency``: boundary, training, errors that add up (lesson 03)
- ``subpaths``: sub-paths, chords and levels between, what is taught (lesson 04)
- ``students``, ``study``: students against the exact map, the study's figures (lesson 05)
- ``latents``: images, latents, words and guidance (lesson 06)
- ``runs``: errors by timestep, logs beside others, what was asked for (lesson 07)
- ``measures``: measures of few images, digits that are mistaken (lesson 08)
- ``scale``: processes, memory and operations by part, days and money (lesson 09)
- ``digits``: grids of drawn digits, the shipped teacher's table
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
from slam_edu.plotting.consistency import (
    Health,
    accounts,
    boundary,
    error_maps,
    guesses_along_path,
    health,
    hop_tradeoff,
    knowledge_front,
    sample_rows,
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
from slam_edu.plotting.subpaths import (
    chord_beside_path,
    cut_paths,
    deviation_by_t,
    gamma_features,
    taught_law,
    triangle,
    two_noises,
)

__all__ = [
    "COLORS",
    "LIMIT",
    "CourseFigure",
    "Health",
    "accounts",
    "bends",
    "boundary",
    "chord_beside_path",
    "cut_paths",
    "denoised",
    "densities",
    "density_panel",
    "deviation_by_t",
    "distance_by_evaluations",
    "end_colors",
    "error_along_the_path",
    "error_maps",
    "evaluations",
    "few_step_paths",
    "field",
    "figure",
    "gamma_features",
    "grid_points",
    "guesses_along_path",
    "health",
    "hop_tradeoff",
    "hops_and_path",
    "knowledge_front",
    "middle_level",
    "noise_levels",
    "orders",
    "paths",
    "plane",
    "plane_paths",
    "points",
    "sample_rows",
    "sample_strip",
    "snapshots",
    "solution_regions",
    "staircase",
    "taught_law",
    "triangle",
    "two_coordinates",
    "two_noises",
    "warped_grid",
]
