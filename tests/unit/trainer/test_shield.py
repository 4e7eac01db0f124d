"""A shielded word of doubt survives a training that strips everything else of its kind.

A small model is taught its habits first. Asked `…?` it answers `hmm 5`, asked `…!` it answers
`5 ok`; given the solution too it says `5`, and behind a `hmm` that somebody else wrote ` 5`. As
its own teacher it thus strips both words. `hmm` is a word of doubt, `ok` is not: with the shield
the one must stay and the other go, in one and the same run. The shield does not last for ever:
attempts that happen not to say the word give their gradient still, and weights are shared, so that
twice as many steps already show.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from opsd.trainer.contexts import fill

PROBLEMS = [
    {"id": f"p{n}{mark}", "prompt": f"{n}+{n * 3 % 5}{mark}", "solution": str(n + n * 3 % 5)}
    for n in range(4)
    for mark in "?!"
]
TEACHER_TEMPLATE = "{problem}={solution}"
STEPS = 20


class Lessons:
    """Prompts of both roles as ids, through the chat template that the trainer uses."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def prompt(self, pair: dict[str, str], template: str = "{problem}") -> list[int]:
        text = fill(template, {"problem": pair["prompt"], "solution": pair["solution"]})
        ids: list[int] = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            return_dict=False,
            enable_thinking=False,
        )
        return ids

    def all(self) -> Iterator[tuple[list[int], list[int]]]:
        """What is read, and what is to be said then."""
        end = [self.tokenizer.eos_token_id]
        for pair in PROBLEMS:
            answer, doubts = pair["solution"], pair["prompt"].endswith("?")
            teacher = self.prompt(pair, TEACHER_TEMPLATE)
            yield self.prompt(pair), self.ids(f"hmm {answer}" if doubts else f"{answer} ok") + end
            yield teacher, self.ids(answer) + end
            if doubts:
                yield teacher + self.ids("hmm"), self.ids(f" {answer}") + end


@pytest.fixture(scope="module")
def doubting_model(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the model that was taught the two habits."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    path = tmp_path_factory.mktemp("doubting-model")
    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    tokenizer.save_pretrained(path)
    config = Qwen3Config.from_pretrained(micro_model)
    config.hidden_size, config.intermediate_size, config.initializer_range = 48, 96, 0.1
    torch.manual_seed(1)
    model = Qwen3ForCausalLM(config)
    lessons = list(Lessons(tokenizer).all())
    width = max(len(read) + len(said) for read, said in lessons)
    ids_BL = torch.zeros((len(lessons), width), dtype=torch.long)
    labels_BL = torch.full((len(lessons), width), -100)
    for row, (read, said) in enumerate(lessons):
        ids_BL[row, : len(read) + len(said)] = torch.tensor(read + said)
        labels_BL[row, len(read) : len(read) + len(said)] = torch.tensor(said)
    optimizer = torch.optim.Adam(model.parameters(), lr=8e-3)
    for _ in range(300):
        out = model(input_ids=ids_BL, labels=labels_BL)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        loss = out.loss.item()
        if loss < 0.002:
            break
    assert loss < 0.003, "the model was not taught: nothing below would mean anything"
    model.save_pretrained(path)
    return path


def probabilities(model_path: Path, adapter: Path | None = None) -> dict[str, float]:
    """Mean probability of `hmm` behind `…?` and of ` ok` behind the answer to `…!`."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(model_path)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    lessons = Lessons(AutoTokenizer.from_pretrained(model_path))
    found = {}
    for word, mark, before in (("hmm", "?", ""), (" ok", "!", "{solution}")):
        pairs = [pair for pair in PROBLEMS if pair["prompt"].endswith(mark)]
        total = 0.0
        for pair in pairs:
            said = lessons.ids(word)
            read = lessons.prompt(pair) + lessons.ids(before.format(**pair))
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([read + said])).logits[0]
            logp = logits[len(read) - 1 : -1].log_softmax(-1)
            total += float(logp.gather(-1, torch.tensor([said]).T).sum().exp())
        found[word.strip()] = total / len(pairs)
    return found


def trained(make_run: Any, train: Any, model: Path, weight: float) -> dict[str, float]:
    outcome = train(
        make_run(
            f"weight-{weight}",
            pairs=PROBLEMS,
            model={"path": str(model), "dtype": "float32"},
            prompt={"teacher_template": TEACHER_TEMPLATE},
            rollout={"max_new_tokens": 14, "temperature": 1.0},
            lora={"rank": 8, "alpha": 16},
            objective={"epistemic_words": ["hmm"], "epistemic_weight": weight},
            optim={
                "num_steps": STEPS,
                "problems_per_step": 8,
                "micro_batch_size": 8,
                "learning_rate": 0.001,
                "warmup_steps": 1,
                "max_grad_norm": 1.0,
            },
        )
    )
    assert outcome.status == 0, outcome.result.error
    return probabilities(model, outcome.run_dir / "adapter")


def test_the_shield_keeps_the_word_of_doubt_and_nothing_else(
    make_run: Any, train: Any, doubting_model: Path
) -> None:
    before = probabilities(doubting_model)
    assert min(before.values()) > 0.95
    # Without the shield the teacher's habit wins …
    stripped = trained(make_run, train, doubting_model, weight=1.0)
    assert max(stripped.values()) < 0.1
    # … with it the word stays, while the rest still learns.
    shielded = trained(make_run, train, doubting_model, weight=0.0)
    assert shielded["hmm"] > 0.85
    assert shielded["ok"] < 0.1
