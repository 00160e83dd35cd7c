"""What an engine has to keep a container's code in: each part by what the engine says of itself, and the grade of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..environments.docker_engine import Engine
from ..environments.docker_errors import without_credentials
from ..environments.docker_rooms import SEES_FILES, what_is_shared
from ..types import JSON
from .findings import Finding, Status
from .machine import Grade
from .text import one_line

AREA = "Docker"
TOLD_CHARS = 200  # of one thing that an engine says
MOST_WARNINGS = 10
SHIMS = "io.containerd."  # how the longer names begin, of runtimes that have a short one
GIB = 1024**3

GRADES: Mapping[Grade, str] = {
    "full": "a container's walls stand, as docs/security.md says, and every limit is kept",
    "walls": "a container's walls stand, as docs/security.md says; not every limit is kept: {}",
    "partial": "Docker filters no system calls here, see above; use inputs and models that you trust (docs/security.md)",
}  # "none" is where no engine can be used
# What the engine says it can keep; what of a container it bounds; what there is without it; what gives it to an engine of root's.
LIMITS: Mapping[str, tuple[str, str, str, str]] = {
    "MemoryLimit": (
        "memory",
        "a container may have what the option `memory` says",
        "a container may take all memory of its machine",
        "boot its kernel with cgroup_enable=memory",
    ),
    "SwapLimit": (
        "swap",
        "a container's memory is not exceeded by swapping",
        "a container may have swap beside its memory",
        "boot its kernel with swapaccount=1, or turn swap off",
    ),
    "PidsLimit": (
        "processes",
        "a container may have as many processes and threads as the option `pids` says",
        "a fork bomb in a container fills its machine",
        "its kernel needs CONFIG_CGROUP_PIDS",
    ),
    "CpuCfsQuota": (
        "CPUs",
        "a container may use as many as the option `cpus` says",
        "a container competes with all else for its machine's CPUs",
        "its kernel needs CONFIG_CFS_BANDWIDTH",
    ),
}
DELEGATE = (
    "a rootless engine needs control groups of version 2, whose controllers are delegated to its user "
    "(for systemd's user@.service: Delegate=cpu cpuset io memory pids)"
)
NO_GROUPS = "--ignore-cgroups"  # an argument of gVisor's


def findings_of(engine: Engine, api: str) -> Iterator[Finding]:
    """What an engine says of itself, part by part.

    Args:
        api: the version of its API.
    """
    first = _engine(engine, api)
    yield first
    if first.status != "ok":
        return
    yield _machine(engine)
    yield _runtimes(engine)
    yield _users(engine)
    yield _road(engine)
    yield from _limits(engine)
    yield _seccomp(engine)
    yield _labels(engine)
    yield from _warnings(engine)


def _engine(engine: Engine, api: str) -> Finding:
    url, version = without_credentials(engine.url), _said(engine, "ServerVersion")
    if engine.is_here:
        where = "on this machine"
    elif engine.url.startswith("unix:"):
        where = "in a virtual machine, or outside of the container that this is"
    else:
        where = "on another machine, as far as can be told"
    text = f"{version}, API {one_line(api)}, {where} ({one_line(url, TOLD_CHARS)})"
    facts: dict[str, JSON] = {"found": True, "version": version, "api": api, "url": url, "here": engine.is_here}
    if _said(engine, "OSType") == "windows":
        text += "; it runs Windows: switch it to Linux containers"
        return Finding(area=AREA, name="engine", status="missing", text=text, facts={**facts, "grade": "none"})
    return Finding(area=AREA, name="engine", status="ok", text=text, facts=facts)


def _machine(engine: Engine) -> Finding:
    info = engine.info
    memory = int(info.get("MemTotal") or 0)
    facts: dict[str, JSON] = {
        "system": _said(engine, "OperatingSystem"),
        "kernel": _said(engine, "KernelVersion"),
        "machine": _said(engine, "Architecture"),
        "cpus": info.get("NCPU"),
        "memory_bytes": memory,
        "storage": _said(engine, "Driver"),
        "cgroup_version": _said(engine, "CgroupVersion"),
        "cgroup_driver": _said(engine, "CgroupDriver"),
    }
    text = f"{facts['system']}, kernel {facts['kernel']} on {facts['machine']}, {facts['cpus']} CPUs, {memory / GIB:.1f} GiB; "
    text += f"storage {facts['storage']}; control groups of version {facts['cgroup_version']} ({facts['cgroup_driver']})"
    return Finding(area=AREA, name="machine", status="info", text=one_line(text, 2 * TOLD_CHARS), facts=facts)


def _runtimes(engine: Engine) -> Finding:
    default = one_line(engine.runtime_of(None))
    others = sorted(one_line(name) for name in engine.info.get("Runtimes") or () if name != default and not name.startswith(SHIMS))
    closed = [name for name in others if _own_kernel(name)]
    text = f"{default} by default" + (f"; also {', '.join(others)}" if others else "")
    if _own_kernel(default):
        text += "; each container has a kernel of its own, a stronger wall than a shared one"
    elif closed:
        text += f"; environment_options={{'runtime': {closed[0]!r}}} gives each container a kernel of its own, a stronger wall"
        text += f" (without limits: the engine gives it {NO_GROUPS})" if _ignores_groups(engine, closed[0]) else ""
    facts: dict[str, JSON] = {"default": default, "others": [*others], "own_kernel": _own_kernel(default)}
    return Finding(area=AREA, name="runtimes", status="info", text=one_line(text, 2 * TOLD_CHARS), facts=facts)


def _users(engine: Engine) -> Finding:
    names = _security(engine)
    facts: dict[str, JSON] = {"rootless": "rootless" in names, "mapped": "userns" in names}
    if "rootless" in names:
        text = "rootless: the engine and its containers are a user's, who is not root"
    elif "userns" in names:
        text = "mapped: a container's users are others outside"
    else:
        text = "the engine is root's; a container's users are those outside, and arlm takes one that is not root"
    return Finding(area=AREA, name="users", status="ok" if any(facts.values()) else "info", text=text, facts=facts)


def _road(engine: Engine) -> Finding:
    """Which way frames and files go; what is chosen is chosen in docker_rooms."""
    files, sockets = what_is_shared(engine, None, None)
    runtime = one_line(engine.runtime_of(None))
    if sockets:
        why = "the engine and its containers are on this machine's kernel"
    elif files:
        why = f"the runtime {runtime} has a kernel of its own, and sees this machine's files"
    elif not engine.is_here:
        why = "the engine is not on this machine"
    elif engine.maps_users:
        why = "a container's users are others outside"
    elif engine.labels_files:
        why = "SELinux keeps containers from this machine's files"
    else:
        why = f"it is not known that the runtime {runtime} sees this machine's files"
    frames = "frames over a mounted Unix socket" if sockets else "frames over the container's standard streams"
    text = f"{frames}, contexts {'mounted, not copied' if files else 'uploaded'}: {why}"
    facts: dict[str, JSON] = {"transport": "unix" if sockets else "stdio", "files": "mounted" if files else "uploaded", "why": why}
    return Finding(area=AREA, name="road", status="ok" if files else "info", text=text, facts=facts)


def _limits(engine: Engine) -> Iterator[Finding]:
    lost = set(_not_kept(engine))
    for name, kept, without, advice in LIMITS.values():
        if name not in lost:
            yield Finding(area=AREA, name=name, status="ok", text=f"limited: {kept}", facts={"limited": True})
            continue
        if _ignores_groups(engine, engine.runtime_of(None)):
            advice = f"the runtime {one_line(engine.runtime_of(None))} is told {NO_GROUPS}: take that out of the engine's settings"
        elif "rootless" in _security(engine):
            advice = DELEGATE
        yield Finding(area=AREA, name=name, status="missing", text=f"not limited: {without}; {advice}", facts={"limited": False})


def _seccomp(engine: Engine) -> Finding:
    profile = _security(engine).get("seccomp")
    facts: dict[str, JSON] = {"profile": profile, "filters": _filters(engine)}
    if _own_kernel(engine.runtime_of(None)):
        text = "system calls of a container end in its own kernel"
    elif _filters(engine):
        text = f"Docker filters system calls (profile {profile or 'default'}), beside arlm's own filter"
    elif profile == "unconfined":
        text = "Docker filters no system calls: its settings say seccomp-profile unconfined; take that out. arlm's own filter stands alone"
    else:
        text = "Docker filters no system calls: its kernel needs CONFIG_SECCOMP_FILTER, and Docker to be built with seccomp; "
        text += "arlm's own filter, where the kernel has it, stands alone"
    status: Status = "ok" if _filters(engine) or _own_kernel(engine.runtime_of(None)) else "missing"
    return Finding(area=AREA, name="seccomp profile", status=status, text=text, facts=facts)


def _labels(engine: Engine) -> Finding:
    names = {"apparmor": "AppArmor", "selinux": "SELinux"}
    there = [word for name, word in names.items() if name in _security(engine)]
    text = f"{' and '.join(there)}: a further wall around a container, by what its files and programs are"
    if not there:
        text = "neither: Ubuntu and Debian have the first, Fedora the second, as a further wall; the others stand without it"
    return Finding(area=AREA, name="AppArmor, SELinux", status="ok" if there else "info", text=text, facts={"there": [*there]})


def _warnings(engine: Engine) -> Iterator[Finding]:
    warnings: Sequence[object] = engine.info.get("Warnings") or ()
    for warning in warnings[:MOST_WARNINGS]:
        text = one_line(without_credentials(str(warning).removeprefix("WARNING: ")), TOLD_CHARS)
        yield Finding(area=AREA, name="the engine warns", status="info", text=text, facts={"warning": text})


def grade_of(engine: Engine) -> Finding:
    """What containers of the engine's default runtime keep, in one word; see GRADES."""
    lost = _not_kept(engine)
    own_kernel = _own_kernel(engine.runtime_of(None))
    verdict: Grade = "walls" if lost else "full"
    if not own_kernel and not _filters(engine):
        verdict = "partial"
    text = f"{verdict}: {GRADES[verdict].format(', '.join(lost))}"
    if own_kernel:
        text += f"; {one_line(engine.runtime_of(None))} is stronger than that: a container has a kernel of its own"
    facts: dict[str, JSON] = {"grade": verdict, "not_limited": [*lost], "own_kernel": own_kernel}
    return Finding(area=AREA, name="containers", status="ok" if verdict == "full" else "missing", text=text, facts=facts)


def _not_kept(engine: Engine) -> list[str]:
    """The limits that a container of the default runtime does not have."""
    ignored = _ignores_groups(engine, engine.runtime_of(None))
    return [name for key, (name, *_) in LIMITS.items() if ignored or not engine.info.get(key)]


def _ignores_groups(engine: Engine, runtime: str) -> bool:
    settings = (engine.info.get("Runtimes") or {}).get(runtime) or {}
    return NO_GROUPS in (settings.get("runtimeArgs") or ())


def _own_kernel(runtime: str) -> bool:
    return any(part in runtime for part in SEES_FILES)


def _filters(engine: Engine) -> bool:
    return _security(engine).get("seccomp", "unconfined") != "unconfined"


def _security(engine: Engine) -> dict[str, str]:
    """What stands under SecurityOptions: each name, with its profile or nothing."""
    found = {}
    for option in engine.info.get("SecurityOptions") or ():
        fields = dict(part.partition("=")[::2] for part in str(option).split(","))
        if "name" in fields:
            found[fields["name"]] = one_line(fields.get("profile", ""))
    return found


def _said(engine: Engine, key: str) -> str:
    return one_line(str(engine.info.get(key) or "unknown"))
