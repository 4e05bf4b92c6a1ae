"""The core's records cannot be changed, and those of many fields are made by keyword."""

import dataclasses

import pytest
import torch

from slam_edu import (
    DistillConfig,
    DistillOutput,
    Level,
    NoiseSchedule,
    PFODEState,
    Prediction,
    SampleState,
    SubPathSample,
    TrainConfig,
    TrainState,
)
from slam_edu.consistency import ConsistencyFunction
from slam_edu.training import Resume

X = torch.ones(2, 2)
ONE = Level(X[0], X[0])
STATE = dict.fromkeys((f.name for f in dataclasses.fields(TrainState)), 0)
OUTPUT = dict.fromkeys((f.name for f in dataclasses.fields(DistillOutput)), X)
RECORDS = [
    ONE, NoiseSchedule.stable_diffusion().subpaths(50), Prediction(X, X),
    PFODEState(0, ONE, X, None), SampleState(0, 3, X, None), DistillConfig(),
    ConsistencyFunction(schedule=NoiseSchedule.stable_diffusion()),
    SubPathSample(index=X, gamma=X, noise=X), DistillOutput(**OUTPUT), TrainConfig(),
    TrainState(**STATE), Resume(),
]  # fmt: skip
BY_KEYWORD = (DistillConfig, ConsistencyFunction, SubPathSample, DistillOutput, TrainConfig,
              TrainState, Resume)  # fmt: skip


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_are_frozen(record):
    for field in dataclasses.fields(record):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, field.name, None)
    if isinstance(record, BY_KEYWORD):
        with pytest.raises(TypeError, match="positional"):
            type(record)(*(getattr(record, f.name) for f in dataclasses.fields(record)))
