"""``arlm doctor``: what works here, tried where it can be tried, and what is missing."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict

from .. import __version__
from ..clients.packages import install_command, installed_version
from ..clients.rows import ROWS
from ..clients.servers import Server, ask_servers
from ..plugins import CLIENTS, ENVIRONMENTS, load
from ..types import JSON
from . import containers
from .exits import Code
from .findings import Finding, Status
from .machine import System, grade_of, parts_of
from .output import write, write_json
from .probes import Probe, probe_memory_limit, probe_process
from .providers import Provider, providers
from .signals import signals

MARKS: dict[Status, str] = {"ok": "ok", "missing": "--", "failed": "!!", "info": "  "}
PARTS = ("openai", "aiohttp", "anyio", "pydantic", "rich", "typer", "genai-prices", "tenacity")
SDKS = {row.package: (row.name, install_command(row)) for row in ROWS.values() if row.extra}
BROKER = ("a sandbox that only HTTP reaches", "pip install 'arlm[broker]'")
# By one provider or environment: its name, what installs it.
NEEDED = {**SDKS, "aiodocker": ("docker", "pip install 'arlm[docker]'"), "starlette": BROKER, "uvicorn": BROKER}


def examine(*, as_json: bool) -> int:
    """Look at everything and print what was found. Returns 0, or the sandbox's exit code when no code can run here."""
    code = [*signals.run(_sandbox), *confinement(System())]
    servers, docker = signals.run(_asked)
    findings = [*_this_program(), *code, *docker, *_models(providers(servers)), *_plugins(), *parts(), *_terminal()]
    can_run = any(finding.name == "process" and finding.status == "ok" for finding in findings)
    if as_json:
        write_json({"ok": can_run, "version": __version__, "findings": [asdict(finding) for finding in findings]})
    else:
        write(_report(findings, can_run=can_run))
    return int(Code.ANSWERED if can_run else Code.SANDBOX)


def _report(findings: list[Finding], *, can_run: bool) -> str:
    lines: list[str] = []
    area = ""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        if finding.area != area:
            lines += ["", finding.area] if lines else [finding.area]
            area = finding.area
        lines.append(f"  {MARKS[finding.status]}  {finding.name:<{width}}  {finding.text}")
    verdict = "arlm can run here; `arlm demo` shows it." if can_run else "Nothing can run here: see the lines marked !! above."
    return "\n".join([*lines, "", verdict])


def _this_program() -> Iterator[Finding]:
    area = "This program"
    yield Finding(area=area, name="arlm", status="ok", text=__version__)
    python = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    yield Finding(area=area, name="Python", status="ok", text=python, facts={"version": platform.python_version()})
    supported = sys.platform in ("linux", "darwin")
    advice = "" if supported else "; not supported: arlm needs fork and Unix sockets, use Linux, macOS, or WSL"
    yield Finding(
        area=area,
        name="platform",
        status="ok" if supported else "failed",
        text=f"{platform.system()} {platform.release()} on {platform.machine()}, {os.cpu_count()} CPUs{advice}",
        facts={"system": platform.system(), "release": platform.release(), "machine": platform.machine(), "cpus": os.cpu_count()},
    )


async def _sandbox() -> list[Finding]:
    area = "Where code runs"
    found = []
    tries: list[tuple[str, Callable[[], Awaitable[Probe]]]] = [("process", probe_process), ("memory limit", probe_memory_limit)]
    for name, probe in tries:
        outcome = await probe()
        status: Status = "ok" if outcome.worked else "failed"
        found.append(Finding(area=area, name=name, status=status, text=outcome.text, facts=outcome.facts))
    return found


def confinement(system: System) -> Iterator[Finding]:
    """What keeps a cell's code in on this system, part by part, and the grade of it."""
    area = "What keeps it in"
    for part in parts_of(system):
        yield Finding(area=area, name=part.name, status=part.status, text=part.text, facts={"value": part.value})
    grade, text = grade_of(system)
    status: Status = "ok" if grade == "full" else "missing"
    facts: dict[str, JSON] = {"grade": grade, "parts": dict(system.parts())}
    yield Finding(area=area, name="confinement", status=status, text=f"{grade}: {text}", facts=facts)


async def _asked() -> tuple[list[Server], list[Finding]]:
    """What answers on sockets, all asked at the same time."""
    return await asyncio.gather(ask_servers(), containers.look())


def _models(found: Sequence[Provider]) -> Iterator[Finding]:
    for it in found:
        status: Status = "failed" if it.broken else "missing" if it.problem else "ok"
        yield Finding(area="Models", name=it.name, status=status, text=it.state(), facts=it.facts())


def _plugins() -> Iterator[Finding]:
    for group, what in ((CLIENTS, "providers"), (ENVIRONMENTS, "environments")):
        names = sorted(load(group))
        broken = {name: reason for name in names if (reason := _why_not_loaded(group, name))}
        text = ", ".join(names) or "none: is arlm installed? (pip install .)"
        text += "".join(f"; {name} cannot be loaded: {reason}" for name, reason in broken.items())
        status: Status = "ok" if names and not broken else "failed"
        yield Finding(area="Plug-ins", name=what, status=status, text=text, facts={"names": [*names], "broken": dict(broken)})


def _why_not_loaded(group: str, name: str) -> str | None:
    try:
        load(group)[name].load()
    except Exception as error:  # a plug-in of somebody else's may raise anything
        return f"{type(error).__name__}: {error}"
    return None


def parts() -> Iterator[Finding]:
    """The packages that arlm needs, and those that some providers and environments need."""
    for part in PARTS:
        there = installed_version(part)
        text = there or "not installed: install arlm again"
        yield Finding(area="Parts", name=part, status="ok" if there else "failed", text=text, facts={"version": there})
    for part, (name, command) in NEEDED.items():
        there = installed_version(part)
        text = there or f"not installed; {name} needs it: {command}"
        yield Finding(area="Parts", name=part, status="ok" if there else "missing", text=text, facts={"version": there})


def _terminal() -> Iterator[Finding]:
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        kind = "a terminal" if stream.isatty() else "no terminal"
        yield Finding(
            area="Terminal",
            name=name,
            status="info",
            text=f"{kind}, {stream.encoding}",
            facts={"tty": stream.isatty(), "encoding": stream.encoding},
        )
