"""Log-likelihood: SFT on the solutions, STaR on the student's own correct attempts.

L = mean over sequences of -(1 / |y|) sum_n log p_S(y_n | x, y<n)
"""

from collections.abc import Sequence

from torch import Tensor

from opsd.trainer.attempts import Attempt, Outcomes
from opsd.trainer.data import Pair
from opsd.trainer.epistemic import EpistemicTokens
from opsd.trainer.lora import StudentTeacher
from opsd.trainer.methods.answer import Answer, StepSums, answer_of, token_weights
from opsd.trainer.methods.logprobs import add_likelihood, negative_log_likelihood
from opsd.trainer.prompts import PromptMaker


class SupervisedFineTuning:
    """NLL of the pair's solution as the student's answer, its end token included.

    Args:
        network: its student trains.
        maker: of the student's prompts.
        epistemic: counts words of doubt.
        eos_id: ends an answer.
        context_tokens: of the model: a solution that does not fit is refused by `usable`.
    """

    samples = False
    verifies = False
    has_teacher = False

    def __init__(
        self,
        network: StudentTeacher,
        maker: PromptMaker,
        epistemic: EpistemicTokens,
        eos_id: int,
        context_tokens: int,
    ) -> None:
        self._network = network
        self._maker = maker
        self._epistemic = epistemic
        self._eos_id = eos_id
        self._context_tokens = context_tokens

    def answers(self, attempts: Sequence[Attempt], outcomes: Outcomes) -> list[Answer]:
        raise AssertionError("nothing is sampled for SFT")

    def demonstrations(self, pairs: Sequence[Pair]) -> list[Answer]:
        answers: list[Answer] = []
        for pair in pairs:
            prompt = self._maker.student_ids(pair)
            assert prompt is not None, "draws pass over what does not fit"
            response = (*self._maker.plain_ids(pair.solution), self._eos_id)
            if len(prompt) + len(response) > self._context_tokens:
                continue
            marks = tuple(self._epistemic.marks(response))
            answers.append(Answer(prompt, (), response, False, marks, pair_id=pair.id))
        return answers

    def loss(self, batch: Sequence[Answer], num_sequences: int, sums: StepSums) -> Tensor:
        return _likelihood_loss(self._network, batch, num_sequences, sums)


class SelfTaughtReasoner:
    """NLL of the attempts that the verifier passed (STaR, arXiv 2203.14465, without its hints).

    Args:
        network: its student trains.
        epistemic: counts words of doubt.
    """

    samples = True
    verifies = True
    has_teacher = False

    def __init__(self, network: StudentTeacher, epistemic: EpistemicTokens) -> None:
        self._network = network
        self._epistemic = epistemic

    def answers(self, attempts: Sequence[Attempt], outcomes: Outcomes) -> list[Answer]:
        return [
            answer_of(attempt, self._epistemic)
            for attempt in attempts
            if attempt.verdict is not None and attempt.verdict.passed
        ]

    def demonstrations(self, pairs: Sequence[Pair]) -> list[Answer]:
        raise AssertionError("STaR samples")

    def loss(self, batch: Sequence[Answer], num_sequences: int, sums: StepSums) -> Tensor:
        return _likelihood_loss(self._network, batch, num_sequences, sums)


def _likelihood_loss(
    network: StudentTeacher, batch: Sequence[Answer], num_sequences: int, sums: StepSums
) -> Tensor:
    weights_T = token_weights(batch, num_sequences)
    out = negative_log_likelihood(network, batch, weights_T, temperature=1.0)
    add_likelihood(sums, out, batch, out.telemetry.loss_T)
    return out.loss
