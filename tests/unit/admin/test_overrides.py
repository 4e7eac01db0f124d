"""From a trigger's message to the overrides that the run keeps, zero values and all."""

from __future__ import annotations

import json

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from opsd.daemon.admin.overrides import overrides_json
from opsd.daemon.config.training import TrainingConfig
from opsd.daemon.errors import InvalidInputError
from opsd.daemon.runs.overrides import merge_overrides
from opsd.v1 import admin_pb2, training_pb2


def request(*paths: str, **fields: object) -> admin_pb2.TriggerRunRequest:
    return admin_pb2.TriggerRunRequest(
        overrides=training_pb2.RunSpec(**fields),  # type: ignore[arg-type]
        overridden=FieldMask(paths=paths),
    )


def test_without_a_mask_zero_means_not_set() -> None:
    optim = training_pb2.OptimSpec(num_steps=7, warmup_steps=0)
    assert json.loads(overrides_json(request(optim=optim))) == {"optim": {"num_steps": 7}}
    assert overrides_json(admin_pb2.TriggerRunRequest()) == "{}"


def test_what_the_mask_names_is_taken_even_when_zero() -> None:
    paths = ("optim.warmup_steps", "rollout.top_k", "prompt.teacher_thinking", "seed")
    text = overrides_json(request(*paths, optim=training_pb2.OptimSpec(num_steps=7)))
    configured = TrainingConfig.model_validate(
        {
            "seed": 9,
            "prompt": {"teacher_thinking": True},
            "rollout": {"top_k": 20},
            "optim": {"warmup_steps": 5, "num_steps": 100, "learning_rate": 0.5},
        }
    )
    merged = merge_overrides(configured, text)
    assert (merged.optim.num_steps, merged.optim.warmup_steps) == (7, 0)
    assert merged.rollout.top_k == 0
    assert merged.prompt.teacher_thinking is False
    assert merged.seed == 0
    assert merged.optim.learning_rate == 0.5
    assert merged.lora == configured.lora


@pytest.mark.parametrize("path", ["optim.warm", "optim", "optim.warmup_steps.x", "", "seed.", "."])
def test_a_path_that_is_no_field_is_refused_by_name(path: str) -> None:
    with pytest.raises(InvalidInputError, match="is no field of RunSpec") as caught:
        overrides_json(request(path))
    assert repr(path) in str(caught.value)


def test_an_unspecified_enum_is_refused_when_the_run_is_made() -> None:
    with pytest.raises(InvalidInputError, match=r"objective.divergence is unspecified"):
        merge_overrides(TrainingConfig(), overrides_json(request("objective.divergence")))
