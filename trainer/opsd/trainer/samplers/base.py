"""What a sampler is."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from opsd.trainer.rollout import Rollout

Prompt = tuple[int, ...]
WriteAdapter = Callable[[Path], str]
"""Writes the student's adapter as this directory, returns its content digest: `save_adapter`."""


class Sampler(Protocol):
    """Samples answers of the student, with the random numbers of (run seed, step, stream id)."""

    def sync(self, version: int, write: WriteAdapter) -> None:
        """The student of this version (steps done) can be sampled from when this returns.

        Every rank calls it, with the same version; the one before stays for samples under way.
        Raises `SamplerError`.
        """

    def sample(
        self, prompts: Sequence[Prompt], stream_ids: Sequence[int], *, step: int, version: int
    ) -> list[Rollout]:
        """One answer to each prompt, in their order, from the student of this version.

        Blocks; may be called from another thread than `sync`. No prompts: no answers.

        Args:
            prompts: token ids.
            stream_ids: one a prompt, unique within the step over all ranks.
            step: of the run.
            version: one that `sync` was called with, the last or the one before.

        Raises:
            SamplerError: there is no such version, or nobody can be reached.
        """

    def close(self) -> None:
        """Frees everything; a `sample` under way in another thread ends with `SamplerError`."""
