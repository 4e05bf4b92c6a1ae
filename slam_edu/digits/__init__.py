"""Coloured handwritten digits: data, a Stable Diffusion small enough to ship, and its judge.

data          real handwriting, coloured and captioned
captions      wordings
colours       eight colours, and the reader that finds them in an image
pipeline      the shipped models: :func:`load_pipeline`, :func:`load_student`
classifier    reads digits
evaluate      how well a model draws what it is asked for

How the models were trained and measured is in the checkout's ``studies/digits``.
"""

from slam_edu.digits.captions import caption
from slam_edu.digits.classifier import DigitClassifier
from slam_edu.digits.colours import COLOURS, read_colours
from slam_edu.digits.data import CaptionedDigits, DigitBatch
from slam_edu.digits.pipeline import load_classifier, load_pipeline, load_student

__all__ = [
    "COLOURS",
    "CaptionedDigits",
    "DigitBatch",
    "DigitClassifier",
    "caption",
    "load_classifier",
    "load_pipeline",
    "load_student",
    "read_colours",
]
