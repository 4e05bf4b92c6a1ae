"""Coloured handwritten digits: data, a Stable Diffusion small enough to ship, and its judge.

data          real handwriting, coloured and captioned
captions      wordings, and what a prompt asks for
colours       eight colours, and the reader that finds them in an image
networks      the parts of the model, from diffusers and transformers
train         how it was trained: ``python -m slam_edu.digits.train``
pipeline      the shipped models: :func:`load_pipeline`, :func:`load_student`
classifier    reads digits
evaluate      scores: ``python -m slam_edu.digits.evaluate``
students      the study of distilled students: ``python -m slam_edu.digits.students``
"""

from slam_edu.digits.captions import Asked, caption, read_prompt
from slam_edu.digits.classifier import DigitClassifier
from slam_edu.digits.colours import COLOURS, read_colours
from slam_edu.digits.data import CaptionedDigits, DigitBatch
from slam_edu.digits.pipeline import load_classifier, load_pipeline, load_student

__all__ = [
    "COLOURS",
    "Asked",
    "CaptionedDigits",
    "DigitBatch",
    "DigitClassifier",
    "caption",
    "load_classifier",
    "load_pipeline",
    "load_student",
    "read_colours",
    "read_prompt",
]
