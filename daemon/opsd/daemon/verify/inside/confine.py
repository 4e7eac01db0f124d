"""The last limits, set by the process itself before it runs what it does not trust."""

from __future__ import annotations

import ctypes
import os
import resource
import select
import struct

NOBODY = 65534

_CLONE_NEWUSER = 0x10000000
_NEW_NAMESPACES = 0x7E020080  # every CLONE_NEW* flag
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522

# x86-64's numbers. Memory that no limit counts (memfd, System V), other processes' memory, other
# namespaces and the kernel's own machinery.
_FORBIDDEN = {
    "shmget": 29,
    "msgget": 68,
    "ptrace": 101,
    "pivot_root": 155,
    "chroot": 161,
    "mount": 165,
    "umount2": 166,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "unshare": 272,
    "perf_event_open": 298,
    "setns": 308,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "memfd_create": 319,
    "bpf": 321,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsmount": 432,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "memfd_secret": 447,
}
_CLONE, _CLONE3 = 56, 435
_X86_64 = 0xC000003E
_X32_BIT = 0x40000000
_EPERM, _ENOSYS = 1, 38

# Classic BPF: opcodes of linux/filter.h, what seccomp answers of linux/seccomp.h.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_AT_NUMBER, _AT_ARCHITECTURE, _AT_FIRST_ARGUMENT = 0, 4, 16


def confine(
    *, memory_mib: int, cpu_s: int, processes: int, file_mib: int, lifeline_fd: int
) -> None:
    """Raises OSError when the kernel refuses any of it: nothing untrusted may run then.

    ``lifeline_fd`` is a pipe that the daemon holds the other end of: one that died before
    bubblewrap could tie its life to it is not seen by anybody else.

    Started as root, it becomes nobody in a user namespace of its own first: root's processes are
    under no limit of their number.
    """
    if select.select([lifeline_fd], [], [], 0)[0]:
        raise SystemExit("the daemon is gone")
    os.close(lifeline_fd)
    libc = ctypes.CDLL(None, use_errno=True)
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        _call(libc.unshare, _CLONE_NEWUSER)
    _drop_capabilities(libc)
    # After the namespace was made: a limit set before would be shared by all that nobody runs.
    limits = {
        resource.RLIMIT_AS: memory_mib << 20,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_FSIZE: file_mib << 20,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    _filter_system_calls(libc)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    nothing = ctypes.create_string_buffer(24)
    _call(libc.capset, header, nothing)


def _filter_system_calls(libc: ctypes.CDLL) -> None:
    program = _program()
    buffer = ctypes.create_string_buffer(program)
    length = len(program) // 8
    argument = ctypes.create_string_buffer(
        struct.pack("=H6xQ", length, ctypes.addressof(buffer)), 16
    )
    _call(libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call(libc.prctl, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, argument, 0, 0)


def _program() -> bytes:
    """Jumps count the instructions to pass over; each refusal stands right behind its test."""
    code = [
        (_LOAD, 0, 0, _AT_ARCHITECTURE),
        (_EQUAL, 1, 0, _X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _AT_NUMBER),
        (_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _ERRNO | _ENOSYS),
    ]
    for number in _FORBIDDEN.values():
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    # The C library does without clone3, whose flags a filter cannot read.
    code += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    code += [
        (_EQUAL, 0, 3, _CLONE),
        (_LOAD, 0, 0, _AT_FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, _NEW_NAMESPACES),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _call(function: ctypes._NamedFuncPointer, *arguments: object) -> None:
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__}: {os.strerror(number)}")
