"""The shipped digits model: its training, its scores, and students of it at equal cost.

    python -m studies.digits.train vae | diffusion | classifier | export
    python -m studies.digits.teacher    scores of the shipped model
    python -m studies.digits            students, trained and measured

- ``students``: which students, which solvers beside them, and what all of them share
- ``reference``: the teacher's own solution map and samples, which students are held against
- ``measure``: what is measured of a student or a solver
- ``jobs``: one row of the results
- ``report``: tables and figures
- ``ship``: writes the student that comes with the course

Results are shipped in ``data/digits-results``.
"""
