"""The Engine protocol over vLLM's AsyncLLM."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import multiprocessing
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from opsd.daemon.config.schema import EngineConfig, ModelConfig
from opsd.daemon.errors import (
    AdapterError,
    ConfigError,
    EngineError,
    NotReadyError,
    StateError,
)
from opsd.daemon.serve.vllm_build import build_engine, check_model_dir
from opsd.daemon.serve.vllm_request import (
    check_length,
    clean_text,
    finish_reason,
    first_token_s,
    one_line,
    sampled_logprobs,
    sampling_params,
    scoring_params,
    token_ids,
    token_scores,
    translated,
)
from opsd.daemon.types.engine import (
    AdapterHandle,
    EngineChunk,
    EngineHealth,
    EngineInfo,
    EngineRequest,
    Sampling,
    ScoreRequest,
    TokenScore,
)

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

log = logging.getLogger(__name__)

T = TypeVar("T")

# Longer texts are tokenised in a thread: this many characters take about a millisecond.
_LONG_PROMPT_CHARS = 4096
_WARM_UP_TOKENS = 4
_STOP_TIMEOUT_S = 10.0


class VllmEngine:
    """One model in one EngineCore process, with LoRA adapters loaded at run time.

    ``start`` may be called again after the engine died or was stopped; adapters must then be loaded
    anew. All methods are for the event loop that called ``start``.
    """

    def __init__(self, model: ModelConfig, engine: EngineConfig) -> None:
        self._model_config = model
        self._engine_config = engine
        self._llm: AsyncLLM | None = None
        self._info: EngineInfo | None = None
        self._tokenizer: Any = None
        self._thread_tokenizer: Any = None
        self._lora_requests: dict[str, Any] = {}  # loaded, by name
        self._lora_seen: dict[str, Any] = {}  # loaded at some time in this engine process
        self._in_flight: Counter[str] = Counter()
        self._adapter_lock = asyncio.Lock()
        self._score_lock = asyncio.Lock()
        # The kernel ties EngineCore's life to the thread that forked it, so that thread must be
        # ours and must outlive it.
        self._builder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine-parent")
        self._tokenise_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenise")

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise NotReadyError("the engine has not been started yet")
        return self._info

    @property
    def client(self) -> AsyncLLM:
        """vLLM's own client, for measuring against it; raises NotReadyError when there is none."""
        return self._require_llm()

    def num_unfinished_requests(self) -> int:
        """Requests that the engine still works on."""
        return 0 if self._llm is None else int(self._llm.get_num_unfinished_requests())

    def engine_pids(self) -> list[int]:
        """Process ids of the engine's own processes; empty when there is no engine."""
        if self._llm is None or self._llm.engine_core.resources.engine_manager is None:
            return []
        return [process.pid for process in self._llm.engine_core.resources.engine_manager.processes]

    async def start(self) -> None:
        """Loads the model and makes a few warm-up completions.

        Raises ConfigError (no such model, wrong device) or EngineError.
        """
        check_model_dir(self._model_config.path)
        if self._llm is not None:
            await self._shut_down()
        started = time.monotonic()
        others = _engine_children()
        try:
            async with asyncio.timeout(self._engine_config.start_timeout_s):
                await self._build()
                await self._warm_up()
        except TimeoutError:
            await self._abandon(others)
            raise EngineError(
                f"the engine was not ready after {self._engine_config.start_timeout_s:g} s; raise "
                "engine.start_timeout_s if the model is large, else see the log above"
            ) from None
        except BaseException:
            await self._abandon(others)
            raise
        log.info(
            "engine ready model=%s start_s=%.1f",
            self._model_config.path,
            time.monotonic() - started,
        )

    async def stop(self) -> None:
        """Ends the engine's process; requests in flight fail. The engine can be started again."""
        await self._shut_down()
        # vLLM's client lives in cycles, and its finaliser fails once the interpreter is going down.
        gc.collect()

    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Streams a completion; closing the generator stops the engine's work on it.

        Raises InvalidInputError (prompt too long, broken chat), StateError (adapter not loaded),
        NotReadyError (no engine) or EngineError.
        """
        return self._generate(request)

    async def score(self, request: ScoreRequest) -> tuple[TokenScore, ...]:
        """See ``types.engine.AnswerScorer``. One at a time, whoever asks: the engine holds the
        whole vocabulary's logits for every token of the prompt and the answer at once.

        Raises InvalidInputError (broken chat), StateError (adapter not loaded), NotReadyError (no
        engine) or EngineError.
        """
        llm = self._require_llm()
        asked = EngineRequest(
            request.request_id,
            Sampling(max_tokens=1, temperature=0.0),
            messages=request.messages,
            enable_thinking=request.enable_thinking,
        )
        prompt = await self._tokenise(asked)
        room = min(request.max_tokens, self.info.max_model_len - 1) - len(prompt)
        answer = list(request.answer_ids[: max(0, room)])
        if not answer:
            return ()
        async with self._score_lock:
            with self._using(request.adapter) as lora:
                try:
                    outputs = llm.generate(
                        {"type": "token", "prompt_token_ids": prompt + answer},
                        scoring_params(request.num_top),
                        request.request_id,
                        lora_request=lora,
                        priority=request.priority,
                    )
                    async with aclosing(outputs):
                        async for output in outputs:
                            if output.finished:
                                return token_scores(output.prompt_logprobs, len(prompt), answer)
                except Exception as error:
                    raise translated(error, llm) from error
        raise EngineError("the engine ended a scoring without a result; send it again")

    async def load_adapter(self, adapter: AdapterHandle) -> None:
        """Makes the adapter ready to be used without a stall; loading it twice is a no-op.

        Raises StateError when its name, id or path is in use for another one, AdapterError when
        vLLM cannot read it.
        """
        from vllm.lora.request import LoRARequest

        async with self._adapter_lock:
            self._check_identity(adapter)
            if adapter.name in self._lora_requests:
                return
            if not (Path(adapter.path) / "adapter_config.json").is_file():
                raise AdapterError(
                    f"adapter {adapter.name}: {adapter.path} has no adapter_config.json"
                )
            if len(self._lora_requests) >= self._engine_config.max_loras:
                raise StateError(
                    f"adapter {adapter.name}: all {self._engine_config.max_loras} slots are taken "
                    f"by {', '.join(self._lora_requests)}; raise engine.max_loras"
                )
            lora = LoRARequest(adapter.name, adapter.lora_id, adapter.path)
            llm = self._require_llm()
            try:
                loaded = await llm.add_lora(lora)
            except Exception as error:
                if llm.errored:
                    raise EngineError(f"the engine died while loading {adapter.name}") from error
                raise AdapterError(
                    f"adapter {adapter.name} at {adapter.path} cannot be loaded: {one_line(error)}"
                ) from error
            if not loaded:
                raise AdapterError(f"adapter {adapter.name} at {adapter.path}: vLLM refused it")
            self._lora_requests[adapter.name] = self._lora_seen[adapter.name] = lora
        log.info("adapter loaded name=%s id=%d", adapter.name, adapter.lora_id)

    async def unload_adapter(self, adapter: AdapterHandle) -> None:
        """Frees it; raises StateError while a request uses it (that would kill the engine)."""
        async with self._adapter_lock:
            if adapter.name not in self._lora_requests:
                return
            in_flight = self._in_flight[adapter.name]
            if in_flight:
                raise StateError(f"adapter {adapter.name} is in use by {in_flight} requests")
            # From here on no new request can take it.
            lora = self._lora_requests.pop(adapter.name)
            llm = self._require_llm()
            try:
                await llm.remove_lora(lora.lora_int_id)
            except Exception as error:
                raise EngineError(
                    f"adapter {adapter.name} was not unloaded: {one_line(error)}"
                ) from error
        log.info("adapter unloaded name=%s id=%d", adapter.name, adapter.lora_id)

    async def health(self) -> EngineHealth:
        if self._llm is None:
            return EngineHealth(False, "the engine is not started")
        if self._llm.errored:
            return EngineHealth(False, "the engine's process died")
        return EngineHealth(True)

    async def _build(self) -> None:
        # Not returned: imports that failed inside (of optional packages) keep the thread's frames,
        # and with them every value in those, until the process ends.
        built: list[AsyncLLM] = []
        try:
            await self._in_builder(
                lambda: built.append(build_engine(self._model_config, self._engine_config))
            )
        except ConfigError:
            raise
        except Exception as error:
            raise EngineError(
                f"the engine could not be started with {self._model_config.path}: {one_line(error)}"
            ) from error
        self._llm = llm = built.pop()
        self._lora_requests.clear()
        self._lora_seen.clear()
        self._in_flight = Counter()
        self._tokenizer = llm.get_tokenizer()
        # Rust tokenizers refuse to be borrowed by two threads at once.
        self._thread_tokenizer = copy.deepcopy(self._tokenizer)
        config = llm.model_config
        self._info = EngineInfo(
            model_path=self._model_config.path,
            max_model_len=int(config.max_model_len),
            vocab_size=int(config.get_vocab_size()),
            max_loras=self._engine_config.max_loras,
            max_lora_rank=self._engine_config.max_lora_rank,
            extra={"dtype": str(config.dtype).removeprefix("torch.")},
        )

    async def _warm_up(self) -> None:
        """What vLLM builds at first use is built before users come: greedy, sampled, with
        log-probabilities; alone and in a batch, whose size vLLM learns to take as variable.
        """
        greedy = Sampling(max_tokens=_WARM_UP_TOKENS, temperature=0.0, ignore_eos=True)
        sampled = replace(greedy, temperature=1.0, logprobs=True)
        for together in ((greedy,), (sampled,), (greedy, sampled, sampled)):
            await asyncio.gather(*(self._complete(sampling) for sampling in together))

    async def _complete(self, sampling: Sampling) -> None:
        request = EngineRequest(f"warm-up-{uuid.uuid4().hex}", sampling, prompt="1")
        async for _ in self._generate(request):
            pass

    async def _shut_down(self) -> None:
        llm, self._llm = self._llm, None
        self._lora_requests.clear()
        if llm is None:
            return
        # Otherwise vLLM's reader sees its process go, and reports a clean stop as a crash.
        if llm.output_handler is not None:
            llm.output_handler.cancel()
        llm.output_processor.propagate_error(EngineError("the engine was stopped"))
        await self._in_builder(lambda: llm.shutdown(timeout=_STOP_TIMEOUT_S))
        # vLLM leaves its ZeroMQ context to the garbage collector. Ending it blocks while a socket
        # is open, and vLLM closes them from this loop.
        resources = llm.engine_core.resources
        sockets = (resources.output_socket, resources.input_socket)
        if all(socket is None or socket.closed for socket in sockets):
            await self._in_builder(lambda: resources.ctx.destroy(linger=0))

    async def _abandon(self, others: list[Any]) -> None:
        """After a failed start: nothing half-built stays, and ``others`` are left alone."""
        if self._llm is None:
            for child in _engine_children():
                if child not in others:
                    child.kill()
        with suppress(Exception):
            await self._shut_down()

    async def _in_builder(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._builder, call)

    def _require_llm(self) -> AsyncLLM:
        if self._llm is None:
            raise NotReadyError("the engine is not running; it is being started or was stopped")
        return self._llm

    def _check_identity(self, adapter: AdapterHandle) -> None:
        """vLLM keys weights by id and its prefix cache by name and path: none may be reused."""
        ours = (adapter.name, adapter.lora_id, adapter.path)
        for lora in self._lora_seen.values():
            theirs = (lora.lora_name, lora.lora_int_id, lora.lora_path)
            if ours != theirs and any(a == b for a, b in zip(ours, theirs, strict=True)):
                raise StateError(
                    f"adapter {adapter.name} (id {adapter.lora_id}, {adapter.path}) shares its "
                    f"name, id or path with {lora.lora_name} (id {lora.lora_int_id}, "
                    f"{lora.lora_path}), which this engine has held; new bytes need a new name, id "
                    "and path"
                )

    async def _generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        llm = self._require_llm()
        prompt = await self._tokenise(request)
        num_prompt_tokens = len(prompt)
        check_length(num_prompt_tokens, self.info.max_model_len)
        with self._using(request.adapter) as lora:
            num_tokens = 0
            try:
                outputs = llm.generate(
                    {"type": "token", "prompt_token_ids": prompt},
                    sampling_params(request, self.info.max_model_len - num_prompt_tokens),
                    request.request_id,
                    lora_request=lora,
                    priority=request.priority,
                )
                async with aclosing(outputs):
                    async for output in outputs:
                        completion = output.outputs[0]
                        num_tokens += len(completion.token_ids)
                        yield EngineChunk(
                            clean_text(completion.text),
                            tuple(completion.token_ids),
                            num_prompt_tokens,
                            num_tokens,
                            finish_reason(completion.finish_reason),
                            first_token_s(output) if output.finished else 0.0,
                            sampled_logprobs(completion),
                        )
            except Exception as error:
                raise translated(error, llm) from error

    @contextmanager
    def _using(self, adapter: AdapterHandle | None) -> Iterator[Any]:
        """vLLM's request for the adapter, which stays loaded meanwhile; None for base.

        Raises StateError when it is not loaded.
        """
        if adapter is None:
            yield None
            return
        # No await between this look-up and the count below: unload_adapter relies on it.
        self._check_identity(adapter)
        lora = self._lora_requests.get(adapter.name)
        if lora is None:
            raise StateError(
                f"adapter {adapter.name} is not loaded; load_adapter must succeed first"
            )
        in_flight = self._in_flight
        in_flight[lora.lora_name] += 1
        try:
            yield lora
        finally:
            in_flight[lora.lora_name] -= 1

    async def _tokenise(self, request: EngineRequest) -> list[int]:
        if request.prompt_ids is not None:
            return list(request.prompt_ids)
        if request.prompt is not None:
            size = len(request.prompt)
        else:
            size = sum(len(message.content) for message in request.messages)
        if size < _LONG_PROMPT_CHARS:
            return token_ids(self._tokenizer, request)
        return await asyncio.get_running_loop().run_in_executor(
            self._tokenise_thread, token_ids, self._thread_tokenizer, request
        )


def _engine_children() -> list[Any]:
    return [c for c in multiprocessing.active_children() if c.name.startswith("EngineCore")]
