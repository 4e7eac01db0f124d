"""The pool's sampler with a real vLLM in its child process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from students import logprobs_of, run_spec, sampled_logprobs, with_adapter, writer_of

from opsd.daemon.types.engine import AdapterHandle
from opsd.trainer.errors import SamplerError, SamplerMismatchError
from opsd.trainer.mismatch import LogprobGap
from opsd.trainer.samplers.pool import PoolSampler
from opsd.v1 import training_pb2

pytestmark = pytest.mark.engine

MakeAdapter = Callable[[int], AdapterHandle]
PROMPTS = [(5, 6, 7), (9,), (1, 2, 3, 4, 5, 6, 7, 8)]
STREAMS = [0, 1, 2]
BOUND = 1e-3


@pytest.fixture(scope="module")
def spec(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> training_pb2.RunSpec:
    return run_spec(micro_model, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def sampler(spec: training_pb2.RunSpec) -> Iterator[PoolSampler]:
    sampler = PoolSampler(spec, eos_ids=frozenset({3}), context_tokens=64)
    yield sampler
    sampler.close()


def test_each_version_is_what_was_synced_and_a_stale_one_is_noticed(
    sampler: PoolSampler, spec: training_pb2.RunSpec, micro_model: Path, make_adapter: MakeAdapter
) -> None:
    paths = {seed: Path(make_adapter(seed).path) for seed in (1, 2)}
    networks = {seed: with_adapter(micro_model, path) for seed, path in paths.items()}
    sampler.sync(0, writer_of(paths[1], spec))
    sampler.sync(1, writer_of(paths[2], spec))
    for version, seed in ((0, 1), (1, 2)):
        rollouts = sampler.sample(PROMPTS, STREAMS, step=1, version=version)
        assert rollouts == sampler.sample(PROMPTS, STREAMS, step=1, version=version)
        assert {rollout.version for rollout in rollouts} == {version}
        said = sampled_logprobs(rollouts)
        right = LogprobGap.of(said, logprobs_of(networks[seed], PROMPTS, rollouts))
        right.check(BOUND, step=1)
        assert right.largest < BOUND
        # The trainer has gone on; the sampler got the old weights under the new version.
        stale = LogprobGap.of(said, logprobs_of(networks[3 - seed], PROMPTS, rollouts))
        with pytest.raises(SamplerMismatchError, match="a stale or foreign adapter"):
            stale.check(0.1, step=1)


def test_only_the_last_two_versions_are_kept(
    sampler: PoolSampler, spec: training_pb2.RunSpec, make_adapter: MakeAdapter
) -> None:
    for version in (5, 6, 7):
        sampler.sync(version, writer_of(Path(make_adapter(1).path), spec))
    kept = sorted(path.name for path in (Path(spec.output_dir) / "students").iterdir())
    assert kept == ["step-00000006", "step-00000007"]
    assert sampler.sample(PROMPTS, STREAMS, step=0, version=6)
    with pytest.raises(SamplerError, match="no student of version 5"):
        sampler.sample(PROMPTS, STREAMS, step=0, version=5)


def test_an_answer_ends_with_its_eos(
    sampler: PoolSampler, spec: training_pb2.RunSpec, make_adapter: MakeAdapter
) -> None:
    sampler.sync(8, writer_of(Path(make_adapter(1).path), spec))
    many = sampler.sample([(5, 6, 7)] * 40, list(range(40)), step=2, version=8)
    assert len({rollout.token_ids for rollout in many}) > 20
    for rollout in many:
        assert len(rollout.logprobs) == len(rollout.token_ids)
        assert 3 not in rollout.token_ids[:-1]
        assert rollout.truncated == (rollout.token_ids[-1] != 3)


def test_prompts_that_overfill_a_step_are_sampled_all_the_same(
    sampler: PoolSampler, spec: training_pb2.RunSpec, make_adapter: MakeAdapter
) -> None:
    """A prompt that vLLM took in parts, with a seed, would be the end of its engine."""
    sampler.sync(9, writer_of(Path(make_adapter(1).path), spec))
    many = sampler.sample(
        [(number % 50 + 5,) * 40 for number in range(120)], range(120), step=0, version=9
    )
    assert len(many) == 120


def test_what_the_engine_refuses_is_said_and_it_lives(sampler: PoolSampler) -> None:
    with pytest.raises(SamplerError, match=r"pool's engine: .*64"):
        sampler.sample([(7,) * 100], [0], step=0, version=8)
    assert sampler.sample(PROMPTS, STREAMS, step=0, version=8)


def test_closing_ends_a_sample_under_way(sampler: PoolSampler) -> None:
    """The last test: it ends the module's sampler."""
    errors: list[BaseException] = []

    def sample() -> None:
        try:
            sampler.sample([(5, 6, 7)] * 2000, list(range(2000)), step=0, version=8)
        except SamplerError as error:
            errors.append(error)

    thread = threading.Thread(target=sample)
    thread.start()
    while not sampler._lock.locked():
        pass
    sampler.close()
    thread.join(30)
    assert [str(error) for error in errors] == ["the sampler was closed"]
