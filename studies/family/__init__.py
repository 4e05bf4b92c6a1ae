"""The family of few-step methods in the plane, measured by one protocol.

    python -m studies.family tune          choose rate, moving average, loss and N on one data set
    python -m studies.family               run what is missing, then write the report
    python -m studies.family --mine FILE   place a method of your own in the table

The methods are :mod:`slam_course.family`; the results ship in ``data/family``.
"""
