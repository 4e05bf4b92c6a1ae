"""The study of distilled digits: students of the shipped teacher at equal cost.

    python -m slam_edu.digits.students [--quick] [--out FOLDER]

- ``plan``: which students, which solvers beside them, and what all of them share
- ``reference``: the teacher's own solution map and samples, which students are held against
- ``measure``: what is measured of a student or a solver
- ``gamma``: what the embedding of gamma does at gamma = 1, where it is used
- ``results``: the file of results
- ``report``: paired ratios, tables, figures
- ``command``: runs what is missing, in parallel; resumes
- ``ship``: writes the student that comes with the course

Its results are shipped in ``data/digits-results/students.json``; :func:`shipped` reads them.
"""

from slam_edu.digits.students.plan import Plan
from slam_edu.digits.students.results import Results, Row, shipped

__all__ = ["Plan", "Results", "Row", "shipped"]
