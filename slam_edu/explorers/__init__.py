"""Explorers of the lessons: each returns a widget with controls and a figure that follows them.

- ``start``: a picture along its PF-ODE, a student at work (lesson 00)
- ``diffusion``: noise levels, density and score (lesson 01)
- ``solvers``: solvers in few steps (lesson 02)
- ``consistency``: composed hops against the exact map (lesson 03)
- ``subpaths``: a sub-path beside its chord (lesson 04)
- ``distillation``: students of a live ablation (lesson 05)
- ``latents``: prompt, guidance, steps and seed of the shipped teacher (lesson 06)
- ``students``: the teacher and its students in few steps (lesson 07)
- ``measures``: what a measure says of small sets of images (lesson 08)
- ``scale``: what a run costs, from a few assumptions (lesson 09)
"""
