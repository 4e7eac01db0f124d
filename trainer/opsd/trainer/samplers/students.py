"""The student's adapter on disk, for samplers that run elsewhere."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from opsd.trainer.adapter_io import content_digest
from opsd.trainer.errors import SamplerError, TrainerError
from opsd.trainer.samplers.base import WriteAdapter

KEPT_VERSIONS = 2
"""The last one, and the one before, which a sample under way may still need."""


@dataclass(frozen=True, slots=True)
class StudentVersion:
    """An adapter directory and what it holds."""

    version: int  # steps done when it was written
    path: str
    sha256: str


def alone(text: str) -> str:
    """How one process shares with itself; see `StudentFiles`."""
    return text


class StudentFiles:
    """Rank 0 writes, all ranks learn what was written, or why it could not be.

    Args:
        directory: `<output_dir>/students`; old versions in it are deleted.
        rank: of this process.
        share: gives every rank what rank 0 passes in (the others pass ""); a collective.
    """

    def __init__(self, directory: Path, rank: int, share: Callable[[str], str] = alone) -> None:
        self._directory = directory
        self._rank = rank
        self._share = share
        self._kept: list[StudentVersion] = []

    def write(
        self, version: int, write: WriteAdapter, announce: Callable[[StudentVersion], None]
    ) -> StudentVersion:
        """Writes the version and has rank 0 `announce` it before any rank goes on.

        Raises SamplerError on every rank when rank 0 could not write or announce it.
        """
        message, error = "", None
        if self._rank == 0:
            try:
                student = self._write(version, write)
                announce(student)
                message = json.dumps(asdict(student))
            except (TrainerError, OSError) as problem:
                message = json.dumps({"error": str(problem)})
                error = problem
        found = json.loads(self._share(message))
        if error is not None:
            raise error
        if "error" in found:
            raise SamplerError(f"rank 0: {found['error']}")
        return self._keep(StudentVersion(**found))

    def find(self, version: int) -> StudentVersion:
        """Raises SamplerError unless the version is one of the last two."""
        for student in self._kept:
            if student.version == version:
                return student
        known = ", ".join(str(student.version) for student in self._kept) or "none"
        raise SamplerError(f"no student of version {version} was synced; there are {known}")

    def _write(self, version: int, write: WriteAdapter) -> StudentVersion:
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"step-{version:08d}"
        digest = write(path)
        # Else a sampler would be asked to load what nobody has looked at.
        assert digest == content_digest(path), f"{path} is not what was written"
        return StudentVersion(version, str(path), digest)

    def _keep(self, student: StudentVersion) -> StudentVersion:
        self._kept = [kept for kept in self._kept if kept.version != student.version]
        self._kept = [*self._kept, student][-KEPT_VERSIONS:]
        if self._rank == 0:
            names = {Path(kept.path).name for kept in self._kept}
            for old in self._directory.glob("step-*"):
                if old.name not in names:
                    shutil.rmtree(old, ignore_errors=True)
        return student
