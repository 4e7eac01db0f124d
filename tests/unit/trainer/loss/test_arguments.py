"""Bad input is a ValueError that names the argument, and for data the place in it."""

import math
from typing import Any

import pytest
import torch
from tests.unit.trainer.loss.test_hidden import IMPLEMENTATIONS, inputs

from opsd.trainer.errors import LossArgumentError
from opsd.trainer.loss import clipped_kl, clipped_kl_from_logits


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("student_hidden", (2, 1)),
        ("teacher_hidden", (4, 0)),
        ("lm_head_weight", (7, 3)),
        ("lm_head_bias", (5,)),
    ],
)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nan_and_infinity_name_their_argument(
    name: str, place: tuple[int, ...], poison: float, implementation: str
) -> None:
    student, teacher, weight = inputs(5, 11, 4)
    given = {
        "student_hidden": student.detach(),
        "teacher_hidden": teacher,
        "lm_head_weight": weight,
        "lm_head_bias": torch.zeros(11),
    }
    given[name][place] = poison
    where = rf"{name}\[{place[0]}"
    with pytest.raises(LossArgumentError, match=where):
        clipped_kl(**given, chunk_size=2, implementation=implementation)  # type: ignore[arg-type]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nan_in_logits_names_the_token(implementation: str) -> None:
    student, teacher = torch.zeros(4, 9), torch.zeros(4, 9)
    teacher[3, 2] = math.inf
    mask = torch.tensor([False, True, True, True])
    with pytest.raises(ValueError, match=r"teacher_logits\[3, 2\]: inf"):
        clipped_kl_from_logits(student, teacher, token_mask=mask, implementation=implementation)  # type: ignore[arg-type]
    teacher[3] = 0
    student[1] = -math.inf
    with pytest.raises(ValueError, match=r"student_logits\[1\]: -inf everywhere"):
        clipped_kl_from_logits(student, teacher, token_mask=mask, implementation=implementation)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"teacher_hidden": torch.zeros(5, 3)}, "teacher_hidden"),
        ({"teacher_hidden": None}, "teacher_hidden is None"),
        ({"student_hidden": torch.zeros(5, 4, dtype=torch.int64)}, "student_hidden"),
        ({"lm_head_weight": torch.zeros(11, 5)}, "lm_head_weight"),
        ({"lm_head_weight": torch.zeros(11, 4, device="meta")}, "lm_head_weight on meta"),
        ({"lm_head_bias": torch.zeros(10)}, "lm_head_bias"),
        ({"token_weight": torch.full((5,), math.inf)}, r"token_weight\[0\]"),
        ({"sampled_ids": torch.tensor([0, 1, 11, 3, 4])}, "sampled_ids"),
        ({"teacher_topk_ids": torch.zeros(5, 2, dtype=torch.long)}, "teacher_topk"),
        ({"implementation": "cuda"}, "implementation"),
        ({"chunk_size": 0}, "chunk_size"),
    ],
)
def test_a_wrong_argument_is_named(changes: dict[str, Any], named: str) -> None:
    student, teacher, weight = inputs(5, 11, 4)
    given: dict[str, Any] = {
        "student_hidden": student,
        "teacher_hidden": teacher,
        "lm_head_weight": weight,
    }
    with pytest.raises(LossArgumentError, match=named):
        clipped_kl(**(given | changes))


@pytest.mark.parametrize(
    ("ids", "logprobs", "named"),
    [
        ([[0, 0]], [[-1.0, -2.0]], "an id is there twice"),
        ([[0, 11]], [[-1.0, -2.0]], "teacher_topk_ids in"),
        ([[0, 1]], [[0.5, -2.0]], "teacher_topk_logprobs"),
        ([[0, 1]], [[-0.1, -0.1]], "adding up to at most 1"),
        ([[0, 1]], [[math.nan, -0.1]], "teacher_topk_logprobs"),
    ],
)
def test_a_wrong_support_is_named(
    ids: list[list[int]], logprobs: list[list[float]], named: str
) -> None:
    student, _, weight = inputs(1, 11, 4)
    with pytest.raises(LossArgumentError, match=named):
        clipped_kl(
            student, None, weight, teacher_topk_ids=torch.tensor(ids),
            teacher_topk_logprobs=torch.tensor(logprobs),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lm_head_weight": torch.zeros(0, 5)}, "lm_head_weight"),
        ({"lm_head_bias": torch.zeros(17, dtype=torch.int64)}, "lm_head_bias"),
        ({"lm_head_bias": torch.full((17,), -math.inf)}, "lm_head_bias: -inf everywhere"),
        ({"token_mask": [True] * 6}, "token_mask: must be a tensor"),
        ({"token_weight": torch.ones(6, requires_grad=True)}, "token_weight requires a gradient"),
        ({"token_weight": torch.ones(6, dtype=torch.complex64)}, "token_weight"),
        ({"sampled_ids": torch.zeros(6, dtype=torch.uint8)}, "int64 or int32"),
        ({"chunk_size": 2.5}, r"chunk_size = 2\.5"),
        ({"top_k": 2.5}, r"top_k = 2\.5"),
        ({"temperature": None}, "temperature = None"),
        ({"temperature": "1"}, "temperature = '1'"),
        ({"temperature": 1e-40}, "temperature"),
        ({"clip": "clamp", "clip_value": "x"}, "clip_value = 'x'"),
        ({"clip": "clamp", "clip_value": 1e-50}, "clip_value"),
        ({"softcap": 1e39}, "softcap"),
        (
            {
                "teacher_hidden": None,
                "teacher_topk_ids": torch.zeros(6, 0, dtype=torch.int64),
                "teacher_topk_logprobs": torch.zeros(6, 0),
            },
            "k from 1",
        ),
        (
            {
                "teacher_hidden": None,
                "top_k": 1,
                "teacher_topk_ids": torch.zeros(6, 1, dtype=torch.int64),
                "teacher_topk_logprobs": torch.full((6, 1), -1.0),
            },
            "top_k: teacher_topk_ids say already",
        ),
    ],
)
def test_arguments_that_are_not_what_they_should_be(changes: dict[str, Any], named: str) -> None:
    student, teacher, weight = inputs(6, 17, 5)
    given: dict[str, Any] = {
        "student_hidden": student,
        "teacher_hidden": teacher,
        "lm_head_weight": weight,
    }
    with pytest.raises(LossArgumentError, match=named):
        clipped_kl(**(given | changes))


def test_native_says_that_it_has_no_fp64() -> None:
    student, teacher, weight = (x.detach().double() for x in inputs(6, 17, 5))
    with pytest.raises(LossArgumentError, match=r"not torch\.float64"):
        clipped_kl(student, teacher, weight, implementation="native")
