import asyncio
import json
import os
import re
from typing import Any

import pytest

from arlm.cli import doctor, machine, probes
from arlm.errors import SandboxError
from arlm.guest import cgroups
from arlm.guest.cgroups import Root
from arlm.guest.confine import grade
from arlm.testing import Script, ScriptedProvider
from commandline import arlm


async def test_doctor_starts_a_worker_and_says_so():
    done = await arlm("doctor")
    assert done.code == 0, done.out
    assert "first cell after" in done.out
    assert "its worker is gone after the run" in done.out
    assert ("closed to cells" if all(grade().values()) else "leaves open" if any(grade().values()) else "nothing is closed") in done.out
    assert done.err == ""


async def test_doctor_names_the_variables_that_are_set_and_shows_no_value():
    done = await arlm("doctor", "--json", OPENAI_API_KEY="sk-very-secret-value", AZURE_OPENAI_API_KEY="another-secret-value")
    assert "secret" not in done.out
    findings = {finding["name"]: finding for finding in json.loads(done.out)["findings"] if finding["area"] == "Models"}
    facts = findings["openai"]["facts"]
    assert facts["usable"] is True
    assert [name for name, is_set in facts["variables"].items() if is_set] == ["OPENAI_API_KEY"]
    assert findings["azure"]["status"] == "missing"
    assert findings["azure"]["text"] == "set: AZURE_OPENAI_API_KEY; needs its base URL: set AZURE_OPENAI_ENDPOINT"
    assert (findings["openrouter"]["facts"]["usable"], set(findings["openrouter"]["facts"]["variables"].values())) == (False, {False})


async def test_doctor_says_that_azures_version_is_missing():
    done = await arlm("doctor", AZURE_OPENAI_API_KEY="key", AZURE_OPENAI_ENDPOINT="https://me.openai.azure.com")
    assert re.search(r"^ +-- +azure .*needs an API version: set OPENAI_API_VERSION", done.out, re.MULTILINE)


async def test_doctor_and_models_tell_the_same_of_every_provider():
    doctor_said, models_said = await asyncio.gather(arlm("doctor", "--json"), arlm("models", "--json"))
    findings = {finding["name"]: finding["facts"] for finding in json.loads(doctor_said.out)["findings"] if finding["area"] == "Models"}
    listed = {it.pop("name"): it for it in json.loads(models_said.out)["providers"]}
    assert list(findings) == list(listed)
    assert all(facts.items() <= listed[name].items() for name, facts in findings.items())


@pytest.mark.parametrize(
    ("package", "extra"), [("portkey-ai", "portkey"), ("aiodocker", "docker"), ("starlette", "broker"), ("uvicorn", "broker")]
)
def test_a_package_of_an_extra_that_is_not_installed_is_no_fault(package, extra, monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda part: None if part == package else "1.0")
    found = {finding.name: finding for finding in doctor.parts()}
    assert (found["anthropic"].status, found["openai"].status) == ("ok", "ok")
    assert found[package].status == "missing"
    assert f"pip install 'arlm[{extra}]'" in found[package].text


def test_a_package_that_arlm_cannot_do_without_is_a_fault(monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda _part: None)
    assert next(iter(doctor.parts())).status == "failed"


async def test_doctor_with_json_names_plug_ins_parts_and_the_kernels_facts():
    told = json.loads((await arlm("doctor", "--json")).out)
    named = {finding["name"]: finding for finding in told["findings"]}
    assert told["ok"] is True
    assert {"openai", "demo"} <= set(named["providers"]["facts"]["names"])
    assert named["environments"]["facts"]["names"] == ["docker", "local", "process"]
    assert named["confinement"]["facts"]["parts"] == grade()
    assert named["confinement"]["facts"]["grade"] == machine.grade_of(machine.System())[0]
    assert {"Landlock", "seccomp", "no_new_privs", "memory group", "process group"} <= set(named)


def test_where_no_code_can_run_the_exit_code_is_that_of_the_sandbox(monkeypatch, capsys):
    async def broken():
        return probes.Probe(worked=False, text="a worker could not run: no fork here")

    monkeypatch.setattr(doctor, "probe_process", broken)
    assert doctor.examine(as_json=False) == 5
    out = capsys.readouterr().out
    assert "!!  process" in out
    assert "Nothing can run here" in out


async def test_a_process_probe_that_fails_says_why(monkeypatch):
    def broken(*_options):
        raise SandboxError("no fork here")

    monkeypatch.setattr(probes, "open_home", broken)
    for probe in (await probes.probe_process(), await probes.probe_memory_limit()):
        assert not probe.worked
        assert "no fork here" in probe.text


async def test_a_model_server_that_answers_is_told_with_its_models():
    async with ScriptedProvider(Script(models=("llama", "qwen"))) as provider:
        done = await arlm("doctor", VLLM_BASE_URL=provider.url, OLLAMA_HOST="127.0.0.1:9")
    at = provider.root.removeprefix("http://")
    assert re.search(rf"^ +ok +vllm +answers at {at}; models: llama, qwen$", done.out, re.MULTILINE)
    assert re.search(r"^ +-- +ollama .*nothing answers at 127.0.0.1:9; start it, or set OLLAMA_HOST$", done.out, re.MULTILINE)


ALL = {"files": True, "tcp": True, "signals": True, "sockets": True, "privileges": True}
GROUPS = {"memory": Root("/sys/fs/cgroup/user", 2), "pids": Root("/sys/fs/cgroup/user", 2)}


def system(**asked: Any) -> machine.System:
    """One that has everything, but for what is said."""
    there: dict[str, Any] = {"landlock": 7, "parts": ALL, "groups": GROUPS, "uid": 1000, **asked}
    questions = {name: lambda answer=answer: answer for name, answer in there.items() if name not in ("system", "machine")}
    named = {name: there.get(name, usual) for name, usual in (("system", "linux"), ("machine", "x86_64"))}
    return machine.System(**questions, **named, line=lambda _path: "127000")


def findings(**asked: Any) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.confinement(system(**asked))}


def test_where_all_is_there_the_grade_is_full():
    found = findings()
    assert {finding.status for finding in found.values()} == {"ok", "info"}
    assert found["confinement"].facts == {"grade": "full", "parts": ALL}
    assert found["user"].text == "uid 1000, not root"


@pytest.mark.parametrize(
    ("abi", "lost", "said"),
    [
        (4, ["signals"], "ABI 4, closes files, TCP; a newer kernel also closes signals and abstract sockets (Linux 6.12)"),
        (3, ["tcp", "signals"], "a newer kernel also closes TCP (Linux 6.7), signals and abstract sockets (Linux 6.12)"),
        (0, ["files", "tcp", "signals"], "Linux 5.13 or later has it; the boot parameter `lsm=` must name landlock"),
    ],
)
def test_an_older_landlock_says_what_a_newer_kernel_closes(abi, lost, said):
    found = findings(landlock=abi, parts={**ALL, **dict.fromkeys(lost, False)})
    assert found["Landlock"].status == "missing"
    assert said in found["Landlock"].text
    assert found["confinement"].status == "missing"
    assert found["confinement"].facts["grade"] == "partial"
    assert f"leaves open: {', '.join(lost)};" in found["confinement"].text


def test_without_seccomp_the_reason_is_the_kernel_or_the_machine():
    parts = {**ALL, "sockets": False}
    assert "CONFIG_SECCOMP_FILTER" in findings(parts=parts)["seccomp"].text
    assert "a filter for x86_64 and aarch64, not for riscv64" in findings(parts=parts, machine="riscv64")["seccomp"].text


def test_without_groups_the_walls_stand_and_the_limits_are_told_as_they_are():
    found = findings(groups={})
    assert found["confinement"].facts["grade"] == "walls"
    assert "memory_limit holds for each process of a worker, not for all of them together" in found["memory group"].text
    assert "systemd-run --user --scope" in found["memory group"].text
    assert "found by counting, and killed" in found["process group"].text
    assert "may outrun" not in found["process group"].text
    assert "may outrun that: run arlm as another user" in findings(groups={}, uid=0)["process group"].text


def test_with_one_group_only_the_other_is_missing():
    found = findings(groups={"pids": GROUPS["pids"]})
    assert (found["memory group"].status, found["process group"].status) == ("missing", "ok")
    assert found["confinement"].facts["grade"] == "walls"


def test_root_is_told_to_be_somebody_else():
    assert findings(uid=0)["user"].status == "missing"
    assert "run arlm as another user" in findings(uid=0)["user"].text


def test_a_kernel_with_nothing_closes_nothing():
    found = findings(landlock=0, parts={**dict.fromkeys(ALL, False), "privileges": True}, groups={})
    assert found["confinement"].facts["grade"] == "none"
    assert "cells may do what you may" in found["confinement"].text


def test_on_another_system_every_part_is_missing():
    found = findings(system="darwin", landlock=0, parts=dict.fromkeys(ALL, False), groups={})
    assert {finding.status for finding in found.values()} == {"missing"}
    assert all("container" in finding.text for finding in found.values())


def test_groups_are_tried_and_nothing_is_left_of_it():
    tried = machine.try_groups()
    assert set(tried) <= set(cgroups.roots())
    mark = cgroups.name(0)
    assert not [place for place in cgroups.roots().values() if mark in os.listdir(place.folder)]
