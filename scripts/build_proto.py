#!/usr/bin/env python3
"""Generate the Python side of opsd.v1 beside its .proto files (`make proto`; setup.py runs it too).

Writes *_pb2.py and *_pb2_grpc.py (protoc), *_pb2.pyi and *_pb2_grpc.pyi (mypy-protobuf).
None of it is committed: the .proto files are the source.
"""

import importlib.resources
import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def plugin(name: str) -> str:
    """Path of a protoc plugin: of this interpreter first, which need not be on PATH."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found is None:
        raise FileNotFoundError(f"{name} not found: pip install -r requirements/dev.lock has it")
    return found


def generate() -> list[Path]:
    """Regenerate everything; return the files that exist now, touching only those that changed.

    Raises:
        RuntimeError: protoc refused; its message, with file and line, is on stderr.
    """
    from grpc_tools import protoc

    sources = sorted(PROTO.glob("opsd/v1/*.proto"))
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    with tempfile.TemporaryDirectory() as scratch:
        status = protoc.main(
            [
                "protoc",
                f"-I{PROTO}",
                f"-I{well_known}",
                f"--plugin=protoc-gen-mypy={plugin('protoc-gen-mypy')}",
                f"--plugin=protoc-gen-mypy_grpc={plugin('protoc-gen-mypy_grpc')}",
                f"--python_out={scratch}",
                f"--grpc_python_out={scratch}",
                f"--mypy_out=quiet:{scratch}",
                f"--mypy_grpc_out=quiet:{scratch}",
                *map(str, sources),
            ]
        )
        if status != 0:
            raise RuntimeError(f"protoc failed with status {status} on {PROTO}/opsd/v1/*.proto")
        made = []
        for new in sorted(Path(scratch).rglob("*_pb2*")):
            target = PROTO / new.relative_to(scratch)
            if not target.exists() or target.read_bytes() != new.read_bytes():
                # Renamed into place: another process may be importing the old file right now.
                partial = target.with_name(f".{target.name}.{os.getpid()}")
                shutil.copyfile(new, partial)
                partial.replace(target)
            made.append(target)
    for suffix in SUFFIXES:
        for stale in PROTO.glob(f"opsd/v1/*{suffix}"):
            if stale not in made:
                stale.unlink()
    return made


if __name__ == "__main__":
    try:
        print(f"proto: {len(generate())} files under proto/opsd/v1/")
    except (FileNotFoundError, RuntimeError) as error:
        sys.exit(f"proto: {error}")
