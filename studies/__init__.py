"""The long measurements and the training of what ships: scripts that write into ``data/``.

    python -m studies.family            few-step methods in the plane, and yours beside them
    python -m studies.digits            students of the shipped digits model
    python -m studies.digits.teacher    the digits model's own scores
    python -m studies.digits.train      the digits model, from scratch

They run in a checkout and are not in the wheel. Each resumes: the same command goes on where it
was stopped.
"""
