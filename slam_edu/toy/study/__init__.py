"""The study: consistency distillation and SLAM in the plane, measured against the exact solution.

    python -m slam_edu.toy.study [--quick] [--out FOLDER]

- ``run``: one student, trained and measured
- ``plan``: which settings, data sets and seeds
- ``results``: the file of results
- ``report``: paired ratios, tables, figures
- ``command``: runs what is missing, in parallel; resumes

Its results are shipped in ``data/study``; :func:`slam_course.results.toy_results` reads them.
"""
