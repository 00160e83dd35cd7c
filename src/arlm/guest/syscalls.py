"""The system call filter (seccomp): which calls a confined process may make, and with which arguments. x86_64 and aarch64.

Landlock asks where a file is; it does not ask about a file's metadata, about kernel objects that have no path, or about calls that name
another process by number. Those are refused here. A filter sees numbers and never what a pointer points to, so a call is refused for every
path or for none.

Numbers are the kernel's: arch/x86/entry/syscalls/syscall_64.tbl, scripts/syscall.tbl; NONE where an architecture lacks the call.
"""

from __future__ import annotations

import errno
import platform
import struct
from typing import Dict, List, Tuple

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000
NONE = -1

Instruction = Tuple[int, int, int, int]

# No cell has a use for these; they reach across processes, around Landlock, or past the limit on memory (a memfd and a System V segment are
# in no address space, and the latter outlives the run). inotify and the like tell names in folders that are closed.
REFUSED: Dict[str, Tuple[int, int]] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "move_mount": (429, 429),
    "open_tree": (428, 428), "open_tree_attr": (467, 467), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "setns": (308, 268), "unshare": (272, 97),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162), "syslog": (103, 116),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "lookup_dcookie": (212, 18), "personality": (135, 92), "vhangup": (153, 58),
    "lsm_set_self_attr": (460, 460), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "file_setattr": (469, 469),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "mq_open": (240, 180), "mq_unlink": (241, 181), "mq_timedsend": (242, 182), "mq_timedreceive": (243, 183), "mq_notify": (244, 184),
    "mq_getsetattr": (245, 185),
    "inotify_add_watch": (254, 27), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
}  # fmt: skip
# Modes, times and owners of files: the answer is that it was done, and nothing is done. The kernel would change those of any file of the
# same user, set-user-id bits included, and a descriptor open for reading is enough. Refusing would break shutil.copy, tar and git.
WITHOUT_EFFECT: Dict[str, Tuple[int, int]] = {
    "chmod": (90, NONE), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, NONE), "lchown": (94, NONE), "fchown": (93, 55), "fchownat": (260, 54),
    "utime": (132, NONE), "utimes": (235, NONE), "futimesat": (261, NONE), "utimensat": (280, 88),
}  # fmt: skip
# Extended attributes: as on a file system that has none, which every program knows.
NOT_SUPPORTED: Dict[str, Tuple[int, int]] = {
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "getxattr": (191, 8), "lgetxattr": (192, 9), "fgetxattr": (193, 10), "getxattrat": (464, 464),
    "listxattr": (194, 11), "llistxattr": (195, 12), "flistxattr": (196, 13), "listxattrat": (465, 465),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
}  # fmt: skip
# A filter cannot look into the structure that clone3 takes; told that there is none, C libraries use clone.
UNKNOWN: Dict[str, Tuple[int, int]] = {"clone3": (435, 435)}
PRIO_PROCESS, IOPRIO_WHO_PROCESS = 0, 1
# Calls that may act on the caller and on nobody else: (argument, the one value that it may have); process 0 is the caller.
ONLY_WITH: Dict[str, Tuple[Tuple[int, int], Tuple[Tuple[int, int], ...]]] = {
    "prlimit64": ((302, 261), ((0, 0),)), "sched_setaffinity": ((203, 122), ((0, 0),)), "sched_setscheduler": ((144, 119), ((0, 0),)),
    "sched_setparam": ((142, 118), ((0, 0),)), "sched_setattr": ((314, 274), ((0, 0),)),
    "setpriority": ((141, 140), ((0, PRIO_PROCESS), (1, 0))), "ioprio_set": ((251, 30), ((0, IOPRIO_WHO_PROCESS), (1, 0))),
}  # fmt: skip
# Calls with one argument that must not have one of these values.
NOT_WITH: Dict[str, Tuple[Tuple[int, int], int, Tuple[int, ...]]] = {
    # Leases hold up whoever else opens the file, F_NOTIFY tells of a folder's changes: 1024, 1026.
    "fcntl": ((72, 25), 1, (1024, 1026)),
    # What changes a file through a descriptor that may only read: FS_IOC_SETFLAGS (and its 32-bit form), FS_IOC_FSSETXATTR,
    # FS_IOC_SETVERSION (and its 32-bit form), FS_IOC_SET_ENCRYPTION_POLICY, FS_IOC_ENABLE_VERITY. What types into a terminal: TIOCSTI,
    # TIOCLINUX.
    "ioctl": ((16, 29), 1, (0x40086602, 0x40046602, 0x401C5820, 0x40087602, 0x40047602, 0x800C6613, 0x40806685, 0x5412, 0x541C)),
    "prctl": ((157, 167), 0, (36,)),  # PR_SET_CHILD_SUBREAPER: orphans of a worker stay with it, which is how they are found
}
# Calls whose first argument must not be the supervisor, which answers for all workers: Landlock keeps signals from it from Linux 6.12 on.
NOT_THE_SUPERVISOR: Dict[str, Tuple[int, int]] = {
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
}  # fmt: skip
CLONE = (56, 220)
CLONE_REFUSED = 0x7E020000 | 0x8000  # every CLONE_NEW… flag; CLONE_PARENT, by which a child would be the supervisor's
SOCKET, SOCKETPAIR, CONNECT = (41, 198), (53, 199), (42, 203)
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
SOCK_STREAM, SOCK_SEQPACKET = 1, 5

ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def known() -> bool:
    """Whether there is a filter for this machine."""
    return platform.machine() in AUDIT_ARCH


def build(network: bool, supervisor: int = 0) -> bytes:
    """The filter's program, an array of ``struct sock_filter``.

    Args:
        supervisor: the process that is not to be signalled; 0: none.
        network: leave IP sockets and connecting open. Unix sockets by path are closed with it or without: they are doors into other
            programs of the user (containers, keys, desktops), not the network.
    """
    machine = platform.machine()
    at = 0 if machine == "x86_64" else 1
    rules = [
        _load(4),  # the architecture: a call made as another one would have other numbers
        _if(AUDIT_ARCH[machine], 1, 0),
        _answer(KILL_PROCESS),
        _load(0),
    ]
    if machine == "x86_64":
        rules += [_if_any_bit(X32_BIT, 0, 1), _refuse(errno.ENOSYS)]
    for table, error in ((REFUSED, errno.EPERM), (WITHOUT_EFFECT, 0), (NOT_SUPPORTED, errno.EOPNOTSUPP), (UNKNOWN, errno.ENOSYS)):
        for numbers in table.values():
            rules += _on(numbers[at], [_refuse(error)])
    for numbers, needed in ONLY_WITH.values():
        rules += _on(numbers[at], [rule for argument, value in needed for rule in _unless(argument, (value,), errno.EPERM)])
    for numbers, argument, values in NOT_WITH.values():
        rules += _on(numbers[at], [_argument(argument), *(rule for value in values for rule in (_if(value, 0, 1), _refuse(errno.EPERM)))])
    for numbers in NOT_THE_SUPERVISOR.values() if supervisor else ():
        rules += _on(numbers[at], [_argument(0), _if(supervisor, 0, 1), _refuse(errno.EPERM)])
    rules += _on(CLONE[at], [_argument(0), _if_any_bit(CLONE_REFUSED, 0, 1), _refuse(errno.EPERM)])
    rules += _sockets(network, at)
    rules.append(_answer(ALLOW))
    return b"".join(struct.pack("=HBBI", *rule) for rule in rules)


def _sockets(network: bool, at: int) -> List[Instruction]:
    """Which sockets there may be. A Unix datagram socket could send to any path without connecting, one of a pair too."""
    pair = [*_unless(0, (AF_UNIX,), errno.EACCES), *_unless(1, (SOCK_STREAM, SOCK_SEQPACKET), errno.EACCES, mask=0xF)]
    rules = _on(SOCKETPAIR[at], pair)
    if network:
        return rules + _on(SOCKET[at], _unless(0, (AF_INET, AF_INET6, AF_NETLINK), errno.EACCES))
    rules += _on(SOCKET[at], [*_unless(0, (AF_UNIX,), errno.EACCES), *_unless(1, (SOCK_STREAM,), errno.EACCES, mask=0xF)])
    return rules + _on(CONNECT[at], [_refuse(errno.EPERM)])


def _on(number: int, body: List[Instruction]) -> List[Instruction]:
    """Rules for one call; what falls through goes on with the number loaded."""
    if number == NONE:
        return []
    return [_if(number, 0, len(body) + 1), *body, _load(0)]


def _unless(argument: int, values: Tuple[int, ...], error: int, mask: int = 0xFFFFFFFF) -> List[Instruction]:
    """Refuse a call whose argument has none of these values, without what the mask leaves out."""
    checks = [_if(value, len(values) - at, 0) for at, value in enumerate(values)]
    return [_argument(argument), (0x54, 0, 0, mask), *checks, _refuse(error)]  # BPF_ALU | BPF_AND


def _argument(index: int) -> Instruction:
    return _load(16 + 8 * index)  # the low half, which is all of an int; both machines are little-endian


def _load(offset: int) -> Instruction:
    return 0x20, 0, 0, offset  # BPF_LD | BPF_W | BPF_ABS of struct seccomp_data


def _if(value: int, equal: int, other: int) -> Instruction:
    return 0x15, equal, other, value  # BPF_JMP | BPF_JEQ | BPF_K


def _if_any_bit(bits: int, some: int, none: int) -> Instruction:
    return 0x45, some, none, bits  # BPF_JMP | BPF_JSET | BPF_K


def _refuse(error: int) -> Instruction:
    return _answer(ERRNO | error)


def _answer(value: int) -> Instruction:
    return 0x06, 0, 0, value  # BPF_RET | BPF_K
