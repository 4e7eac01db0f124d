"""Files that are either there in full or not at all, and stay after a power cut."""

import os
from pathlib import Path


def fsync_dir(path: Path) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Writes and fsyncs; the file may be seen half-written, so write it where nobody looks."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Writes beside the path and renames over it: readers see the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write_durably(temporary, data)
    temporary.replace(path)
    fsync_dir(path.parent)
