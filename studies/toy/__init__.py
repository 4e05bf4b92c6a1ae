"""Consistency distillation and SLAM in the plane, measured against the exact solution map.

    python -m studies.toy [--quick] [--out FOLDER]

- ``groups``: which settings, data sets and seeds
- ``runs``: one student, trained and measured; the file of rows
- ``report``: tables of means and of paired ratios, figures

Students are trained by :mod:`slam_course.lesson_05.students`, as in lesson 05. The results
are shipped in ``data/study``; :func:`slam_course.results.toy_results` reads them.
"""
