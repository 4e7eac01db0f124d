"""From the spec's name to the method."""

from collections.abc import Callable

from opsd.trainer.epistemic import EpistemicTokens
from opsd.trainer.lora import StudentTeacher
from opsd.trainer.methods.base import Method
from opsd.trainer.methods.distil import Distillation, DistilledBatch
from opsd.trainer.methods.grpo import GroupRelativePolicy
from opsd.trainer.methods.likelihood import SelfTaughtReasoner, SupervisedFineTuning
from opsd.trainer.model import BaseModel
from opsd.trainer.prompts import PromptMaker
from opsd.trainer.reasoning import Reasoner
from opsd.v1 import training_pb2


def make_method(
    spec: training_pb2.RunSpec,
    network: StudentTeacher,
    base: BaseModel,
    maker: PromptMaker,
    on_progress: Callable[[], None] = lambda: None,
    onlooker: Callable[[DistilledBatch], None] | None = None,
) -> Method:
    """The method that `objective.method` names.

    Args:
        spec: checked, defaults filled in.
        network: student and teacher.
        base: the loaded model.
        maker: of prompts.
        on_progress: called at every point of progress within long work.
        onlooker: told of every micro-batch that is distilled.
    """
    epistemic = EpistemicTokens(base.tokenizer, spec.objective.epistemic_words)
    match spec.objective.method:
        case training_pb2.METHOD_SFT:
            return SupervisedFineTuning(network, maker, epistemic, base.eos_id, base.context_tokens)
        case training_pb2.METHOD_STAR:
            return SelfTaughtReasoner(network, epistemic)
        case training_pb2.METHOD_GRPO:
            return GroupRelativePolicy(network, spec, epistemic)
    reasoner = None
    if spec.prompt.reason_first_tokens:
        reasoner = Reasoner(network, base, maker, spec, on_progress)
    return Distillation(network, spec, maker, reasoner, epistemic, onlooker)
