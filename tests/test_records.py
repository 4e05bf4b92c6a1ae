"""The core's records cannot be changed, and those of many fields are made by keyword."""

import dataclasses
import inspect

import pytest

import slam_edu
from slam_edu.consistency import ConsistencyFunction
from slam_edu.training import Resume

PUBLIC = [getattr(slam_edu, name) for name in slam_edu.__all__]
RECORDS = [*filter(dataclasses.is_dataclass, PUBLIC), ConsistencyFunction, Resume]
POSITIONAL = {"Level", "Prediction", "SubPathGrid", "PFODEState", "SampleState"}


@pytest.mark.parametrize("record", RECORDS)
def test_records_are_frozen(record):
    assert record.__dataclass_params__.frozen
    kinds = {parameter.kind for parameter in inspect.signature(record).parameters.values()}
    by_keyword = kinds == {inspect.Parameter.KEYWORD_ONLY}
    assert by_keyword == (record.__name__ not in POSITIONAL)
