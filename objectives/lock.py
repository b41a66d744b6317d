"""Give up what the sandboxed code must not have; ``jail`` runs this file, with no package at hand.

* An own user (where we are root) and rlimits bound processes, memory, CPU time and files.
* Landlock (Linux 5.13 and later) keeps it from files: its directory is its own, Python and /usr
  can be read.
* seccomp keeps it from the network, from signals to others, from shared memory, and from what
  Landlock leaves open: attributes of files, namespaces, other people's processes.
"""

import ctypes
import math
import os
import platform
import resource
import signal
import struct
import sys
from contextlib import suppress
from typing import Any

LINUX = sys.platform == "linux"
FIRST_USER = 0x60000000  # one for each sandbox: this plus a process id
NOBODY = 65534
OPEN_FILES = 64

# prctl(2), capabilities(7), landlock(7), seccomp(2)
PDEATHSIG, KEEPCAPS, SECCOMP, NO_NEW_PRIVS, AMBIENT = 1, 8, 22, 38, 47
READ_SEARCH = 2  # the capability to read whatever the file's mode says
EXECUTE, WRITE, READ, READ_DIR = (1 << bit for bit in range(4))
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # Landlock version -> how many rights it knows; then 16
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
EPERM, ENOSYS = 1, 38
NEW_NAMESPACE = 0x7E020000  # flags of clone

# Numbers of the system calls on x86_64 and on aarch64; 0 where it has none.
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
CLONE, CLONE3 = (56, 220), (435, 435)
ON_ITSELF = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}
# Commands that make a file's signals somebody else's: F_SETOWN, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP.
OWNER_OF_SIGNALS = {"fcntl": (72, 25), "ioctl": (16, 29)}
COMMANDS = {"fcntl": (8, 15), "ioctl": (0x8901, 0x8902)}
# fmt: off
DENIED = {
    # sockets, also by way of io_uring
    "socket": (41, 198), "io_uring_setup": (425, 425),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "setpriority": (141, 140), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122), "sched_setattr": (314, 274), "ioprio_set": (251, 30),
    "process_madvise": (440, 440), "process_mrelease": (448, 448),
    # memory that outlives a process, or that RLIMIT_AS does not count; queues of other processes
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190),
    "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191), "msgget": (68, 186),
    "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
    "mq_unlink": (241, 181), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # what Landlock leaves open: attributes of files
    "truncate": (76, 45), "chmod": (90, 0), "fchmod": (91, 52), "fchmodat": (268, 53),
    "fchmodat2": (452, 452), "chown": (92, 0), "lchown": (94, 0), "fchown": (93, 55),
    "fchownat": (260, 54), "utime": (132, 0), "utimes": (235, 0), "futimesat": (261, 0),
    "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "setxattrat": (463, 463), "removexattrat": (466, 466), "file_setattr": (469, 469),
    # ways around: handles, namespaces, mounts, keys, the kernel's own tools
    "open_by_handle_at": (304, 265), "unshare": (272, 97), "setns": (308, 268),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "personality": (135, 92),
}
# fmt: on

READABLE = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/dev/urandom", "/dev/zero")

_libc = ctypes.CDLL(None)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def lock_in(order: dict[str, Any]) -> list[str]:
    """Lock this process in.

    Args:
        order: its ``directory``, and limits: ``seconds``, ``memory`` and ``file`` (bytes),
            ``processes``.

    Returns:
        What this system can't do.
    """
    missing = []
    rules = _file_rules(order["directory"]) if LINUX else -1
    if os.getuid() == 0 and not (LINUX and _drop_root(order["directory"], rules >= 0)):
        missing.append("users other than root")
    missing += _limit(order)
    if LINUX:
        _libc.prctl(PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
    if rules < 0 or _libc.syscall(446, rules, 0):  # landlock_restrict_self
        missing.append("Landlock (files outside are open)")
    if not LINUX or not _filter_calls():
        missing.append("seccomp (the network is open)")
    return missing


def _drop_root(directory: str, keep_reading: bool) -> bool:
    """Become a user whom nobody else is, who owns the directory; whether there was one."""
    _libc.prctl(KEEPCAPS, 1, 0, 0, 0)
    for user in (FIRST_USER + os.getpid(), NOBODY):  # few users are known in some containers
        try:
            os.chown(directory, user, user)
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            break
        except OSError:
            continue
    else:
        return False
    # Where Python lies in a folder of root's, reading goes by Landlock's rules alone.
    shut = not all(os.access(path, os.R_OK) for path in (os.__file__, directory))
    kept = 1 << READ_SEARCH if shut and keep_reading else 0
    _libc.capset(struct.pack("Ii", 0x20080522, 0), struct.pack("6I", kept, kept, kept, 0, 0, 0))
    if kept:
        _libc.prctl(AMBIENT, 2, READ_SEARCH, 0, 0)
    return True


def _limit(order: dict[str, Any]) -> list[str]:
    """Set the rlimits; those that can't be."""
    limits = {
        "CPU": math.ceil(order["seconds"]) + 1,
        "AS": order["memory"],
        "FSIZE": order["file"],
        "NOFILE": OPEN_FILES,
        "NPROC": _tasks(os.getuid()) + order["processes"],
        "CORE": 0,
    }
    missing = []
    for what, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{what}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):
            missing.append(f"RLIMIT_{what}")
    return missing


def _tasks(user: int) -> int:
    """How many threads run under a user, which RLIMIT_NPROC counts."""
    count = 0
    for name in os.listdir("/proc") if LINUX else ():
        if name.isdigit():
            with suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == user:
                    count += len(os.listdir(f"/proc/{name}/task"))
    return count


def _file_rules(directory: str) -> int:
    """Landlock rules: the directory is the code's own, Python and /usr can be read; -1: no such."""
    version = _libc.syscall(444, None, 0, 1)
    if version < 1:
        return -1
    everything = (1 << RIGHTS.get(version, 16)) - 1
    rules = int(_libc.syscall(444, struct.pack("Q", everything), 8, 0))
    python = {os.path.dirname(os.__file__), sys.base_prefix, sys.base_exec_prefix}
    allowed = dict.fromkeys((*READABLE, *python, sys.executable), READ | READ_DIR | EXECUTE)
    allowed |= {"/dev/null": READ | WRITE, directory: everything}
    for path, rights in allowed.items():
        with suppress(FileNotFoundError):
            if not os.path.isdir(path):
                rights &= ~READ_DIR
            place = os.open(path, os.O_PATH)
            _libc.syscall(445, rules, 1, struct.pack("=Qi", rights, place), 0)
            os.close(place)
    return rules


def _filter_calls() -> bool:
    """Refuse the calls above by a seccomp filter; whether this machine has one."""
    column, machine = MACHINES.get(platform.machine(), (0, 0))
    load, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    code = [(load, 0, 0, 4), (equal, 1, 0, machine), (end, 0, 0, KILL), (load, 0, 0, 0)]
    code += [(at_least, 0, 1, 0x40000000), (end, 0, 0, ERRNO | EPERM)]  # numbers of the x32 kind
    for numbers in DENIED.values():
        if numbers[column]:
            code += [(equal, 0, 1, numbers[column]), (end, 0, 0, ERRNO | EPERM)]
    code += [(equal, 0, 1, CLONE3[column]), (end, 0, 0, ERRNO | ENOSYS)]  # so that clone is used
    first_argument, second_argument = (load, 0, 0, 16), (load, 0, 0, 24)
    refuse, allow = (end, 0, 0, ERRNO | EPERM), (end, 0, 0, ALLOW)
    for numbers in ON_ITSELF.values():
        code += [(equal, 0, 5, numbers[column]), first_argument, (equal, 2, 0, 0)]
        code += [(equal, 1, 0, os.getpid()), refuse, allow]
    for name, numbers in OWNER_OF_SIGNALS.items():
        one, other = COMMANDS[name]
        code += [(equal, 0, 5, numbers[column]), second_argument, (equal, 1, 0, one)]
        code += [(equal, 0, 1, other), refuse, allow]
    code += [(equal, 0, 4, CLONE[column]), first_argument, (any_bit, 0, 1, NEW_NAMESPACE)]
    code += [refuse, allow, allow]
    lines = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    program = ctypes.create_string_buffer(struct.pack("HP", len(code), ctypes.addressof(lines)))
    return bool(machine) and _libc.prctl(SECCOMP, 2, ctypes.addressof(program), 0, 0) == 0
