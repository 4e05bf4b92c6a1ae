"""How well a model draws the digits that it is asked for.

    python -m slam_edu.digits.evaluate                            the shipped teacher's table
    python -m slam_edu.digits.evaluate --run --results new.json   the same, measured again

The first reads ``data/digits-results``; the second takes about an hour on two cores, and goes on
where it was stopped.

:class:`Evaluator` judges images: which digit (:mod:`slam_edu.digits.classifier`), which colours
(:mod:`slam_edu.digits.colours`), and how far their distribution is from held-out real images. It
does not care where images come from: a teacher, a student, the data set.
"""

from slam_edu.digits.evaluate.scores import Evaluator, Scores, feature_distances
from slam_edu.digits.evaluate.table import Setting, draw_images, measure

__all__ = ["Evaluator", "Scores", "Setting", "draw_images", "feature_distances", "measure"]
