"""The process of the pool's engine.

Started as `python -m opsd.trainer.samplers.pool_child FD PARENT SETTINGS`. Over the socket FD come
pickled pairs (method, argument); each is answered by ("ok", answer) or ("error", message). The
first message out tells that the engine is ready, or why it is not.
"""

import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

CPU_KV_CACHE_BYTES = 512 << 20
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM has slots for."""
_LORA_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_VERSIONS = 2
_PR_SET_PDEATHSIG = 1

Answer = tuple[list[int], bool, list[float]]  # tokens, truncated, log-probabilities


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """What the engine is built with."""

    model: str
    dtype: str
    max_model_len: int
    max_lora_rank: int
    threads: int
    on_gpu: bool
    memory_fraction: float  # of a GPU's memory
    kv_cache_bytes: int  # 0: what the memory fraction leaves
    sleeps: bool  # while nothing is sampled

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class PoolEngine:
    """vLLM's offline engine with the student's last two versions."""

    def __init__(self, settings: ChildSettings) -> None:
        import torch
        from vllm import LLM

        if not settings.on_gpu:
            torch.set_num_threads(settings.threads)
            # vLLM's bf16 kernels use AMX tiles that nothing has asked for on a small model.
            if torch.cpu._is_amx_tile_supported():
                torch.cpu._init_amx()
        self._sleeps = settings.sleeps
        self._loras: dict[int, Any] = {}  # LoRARequest by version
        self._next_id = 1
        self._llm = LLM(
            model=settings.model,
            dtype=settings.dtype,
            max_model_len=settings.max_model_len,
            kv_cache_memory_bytes=settings.kv_cache_bytes or None,
            enforce_eager=not settings.on_gpu,
            # On a CPU vLLM dies of a seeded prompt that it takes in parts.
            enable_chunked_prefill=None if settings.on_gpu else False,
            distributed_executor_backend="uni",
            enable_lora=True,
            max_loras=_VERSIONS,
            max_cpu_loras=_VERSIONS,
            max_lora_rank=next(r for r in _LORA_RANKS if r >= settings.max_lora_rank),
            lora_target_modules=[*_LORA_MODULES, "qkv_proj", "gate_up_proj"],
            enable_sleep_mode=settings.sleeps,
            generation_config="vllm",
            skip_tokenizer_init=True,
            disable_log_stats=True,
            **({"gpu_memory_utilization": settings.memory_fraction} if settings.on_gpu else {}),
        )
        self._sleep()

    def load(self, version: int, path: str, sha256: str) -> None:
        """vLLM keys weights by id and its prefix cache by name: both are new every time."""
        from vllm.lora.request import LoRARequest

        self._wake()
        lora = LoRARequest(f"student-{self._next_id}-{sha256[:16]}", self._next_id, path)
        self._next_id += 1
        replaced = self._loras.pop(version, None)
        for old in [v for v in self._loras if len(self._loras) >= _VERSIONS][:1]:
            self._remove(self._loras.pop(old))
        if replaced is not None:
            self._remove(replaced)
        if not self._llm.llm_engine.add_lora(lora):
            raise RuntimeError(f"vLLM refused the adapter {path}")
        self._loras[version] = lora
        self._sleep()

    def sample(
        self,
        version: int,
        prompts: list[list[int]],
        seeds: list[int],
        sampling: dict[str, Any],
    ) -> list[Answer]:
        """In the order of the prompts."""
        from vllm import SamplingParams

        self._wake()
        outputs = self._llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            [
                SamplingParams(
                    **sampling,
                    seed=seed,
                    ignore_eos=True,  # what ends an answer is the trainer's to say
                    logprobs=0,
                    flat_logprobs=True,
                    detokenize=False,
                )
                for seed in seeds
            ],
            lora_request=self._loras[version],
            use_tqdm=False,
        )
        answers = [_answer(output.outputs[0]) for output in outputs]
        self._sleep()
        return answers

    def _remove(self, lora: Any) -> None:
        self._llm.llm_engine.remove_lora(lora.lora_int_id)

    def _wake(self) -> None:
        if self._sleeps:
            self._llm.wake_up()

    def _sleep(self) -> None:
        if self._sleeps:
            self._llm.sleep(level=1)


def _answer(completion: Any) -> Answer:
    if completion.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM gave an answer up ({completion.finish_reason})")
    flat = completion.logprobs
    return (
        list(completion.token_ids),
        completion.finish_reason == "length",
        [flat.logprobs[start] for start in flat.start_indices],
    )


def main() -> None:
    descriptor, parent, settings = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    _die_with(parent)
    pipe = Connection(descriptor)
    try:
        engine = PoolEngine(ChildSettings(**settings))
    except Exception as error:
        pipe.send(("error", f"does not start: {_one_line(error)}"))
        raise
    pipe.send(("ok", None))
    while True:
        try:
            method, argument = pipe.recv()
        except EOFError:
            return
        try:
            answer = getattr(engine, method)(**argument)
        except Exception as error:
            pipe.send(("error", _one_line(error)))
        else:
            pipe.send(("ok", answer))


def _die_with(parent: int) -> None:
    """A trainer killed with SIGKILL must not leave its engine behind."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


if __name__ == "__main__":
    main()
