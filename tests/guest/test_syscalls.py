"""The system call filter, run by a small interpreter, for both architectures; and its numbers against the kernel's headers."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from arlm.guest import syscalls
from arlm.guest.syscalls import ALLOW, ERRNO, KILL_PROCESS, NONE, NOT_WITH, ONLY_WITH

MACHINES = {"x86_64": 0, "aarch64": 1}
TABLES = {
    errno.EPERM: syscalls.REFUSED,
    0: syscalls.WITHOUT_EFFECT,
    errno.EOPNOTSUPP: syscalls.NOT_SUPPORTED,
    errno.ENOSYS: syscalls.UNKNOWN,
}


class Filter:
    """A filter as the kernel would run it."""

    def __init__(self, machine: str, network: bool) -> None:
        self.at = MACHINES[machine]
        self.arch = syscalls.AUDIT_ARCH[machine]
        self.rules = list(struct.iter_unpack("=HBBI", syscalls.build(network)))

    def __call__(self, number: int, *args: int, arch: int | None = None) -> int:
        padded = [arg & (1 << 64) - 1 for arg in (*args, *[0] * (6 - len(args)))]
        data = struct.pack("=IIQ6Q", number, self.arch if arch is None else arch, 0, *padded)
        accumulator = at = 0
        while True:
            code, true, false, value = self.rules[at]
            at += 1
            if code == 0x20:
                (accumulator,) = struct.unpack_from("=I", data, value)
            elif code == 0x54:
                accumulator &= value
            elif code in (0x15, 0x45):
                at += true if (accumulator == value if code == 0x15 else accumulator & value) else false
            else:
                assert code == 0x06
                return value


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("platform.machine", lambda: request.param)
    return request.param


@pytest.fixture(params=[False, True], ids=["closed", "network"])
def filtered(request: pytest.FixtureRequest, machine: str) -> Filter:
    return Filter(machine, request.param)


def test_each_table_has_its_answer(filtered: Filter) -> None:
    for error, table in TABLES.items():
        for name, numbers in table.items():
            if numbers[filtered.at] != NONE:
                assert filtered(numbers[filtered.at]) == ERRNO | error, name


def test_ordinary_calls_pass_and_foreign_ones_do_not(filtered: Filter) -> None:
    named = {numbers[filtered.at] for table in TABLES.values() for numbers in table.values()}
    named |= {row[0][filtered.at] for table in (ONLY_WITH, NOT_WITH) for row in table.values()}
    named |= {numbers[filtered.at] for numbers in (syscalls.SOCKET, syscalls.SOCKETPAIR, syscalls.CONNECT)}
    assert {filtered(number) for number in range(600) if number not in named} == {ALLOW}
    assert filtered(0, arch=0x40000003) == KILL_PROCESS
    if filtered.at == 0:
        assert filtered(syscalls.X32_BIT | 42) == ERRNO | errno.ENOSYS


def test_a_call_may_act_on_the_caller_only(filtered: Filter) -> None:
    for name, (numbers, needed) in ONLY_WITH.items():
        right = [dict(needed).get(index, 7) for index in range(6)]
        assert filtered(numbers[filtered.at], *right) == ALLOW, name
        for argument, value in needed:
            wrong = [*right]
            wrong[argument] = value + 1
            assert filtered(numbers[filtered.at], *wrong) == ERRNO | errno.EPERM, name


def test_arguments_that_do_harm_are_refused(filtered: Filter) -> None:
    for name, (numbers, argument, values) in NOT_WITH.items():
        args = [3] * 6
        assert filtered(numbers[filtered.at], *args) == ALLOW, name
        for value in values:
            args[argument] = value | 1 << 32  # the high half of an int is nobody's
            assert filtered(numbers[filtered.at], *args) == ERRNO | errno.EPERM, name


def test_no_clone_makes_a_namespace_or_a_sibling(filtered: Filter) -> None:
    clone = syscalls.CLONE[filtered.at]
    assert filtered(clone, 0x003D0F00) == filtered(clone, 0x4111) == filtered(clone, 17) == ALLOW  # a thread, posix_spawn, fork
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x8000):
        assert filtered(clone, flag | 17) == ERRNO | errno.EPERM


@pytest.mark.parametrize("network", [False, True])
def test_sockets_are_those_that_are_needed(machine: str, network: bool) -> None:
    filtered = Filter(machine, network)
    at = filtered.at
    flags = 0o2000000 | 0o4000
    for family in range(46):
        for kind in range(1, 11):
            allowed = family in (2, 10, 16) if network else (family, kind) == (1, 1)
            assert filtered(syscalls.SOCKET[at], family, kind | flags) == (ALLOW if allowed else ERRNO | errno.EACCES)
            paired = family == 1 and kind in (1, 5)
            assert filtered(syscalls.SOCKETPAIR[at], family, kind | flags) == (ALLOW if paired else ERRNO | errno.EACCES)
    assert filtered(syscalls.CONNECT[at]) == (ALLOW if network else ERRNO | errno.EPERM)


HEADERS = (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h"))


@pytest.mark.skipif(not all(header.exists() for header in HEADERS), reason="needs the kernel's headers")
def test_the_numbers_are_the_kernels() -> None:
    official = [dict(re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE)) for header in HEADERS]
    ours = {name: numbers for table in TABLES.values() for name, numbers in table.items()}
    ours |= {name: row[0] for table in (ONLY_WITH, NOT_WITH) for name, row in table.items()}
    ours |= {"clone": syscalls.CLONE, "socket": syscalls.SOCKET, "socketpair": syscalls.SOCKETPAIR, "connect": syscalls.CONNECT}
    # aarch64 takes the generic table; what that names for older 32-bit machines only is no concern.
    newest = [max(map(int, numbers.values())) for numbers in official]
    for name, numbers in ours.items():
        for number, names, last in zip(numbers, official, newest, strict=True):
            if number == NONE:
                assert name not in names, name
            elif number <= last:
                assert int(names[name]) == number, name
