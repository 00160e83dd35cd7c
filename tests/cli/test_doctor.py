import asyncio
import json

import pytest

from arlm.cli import doctor, machine, probes
from arlm.clients.openai_rows import ROWS
from arlm.errors import SandboxError
from arlm.guest.confine import grade
from commandline import arlm


async def test_doctor_starts_a_worker_and_says_so():
    done = await arlm("doctor")
    assert done.code == 0, done.out
    assert "first cell after" in done.out
    assert "its worker is gone after the run" in done.out
    assert ("closed to cells" if all(grade().values()) else "leaves open") in done.out
    assert done.err == ""


async def test_doctor_names_the_variables_that_are_set_and_shows_no_value():
    done = await arlm("doctor", "--json", OPENAI_API_KEY="sk-very-secret-value", AZURE_OPENAI_API_KEY="another-secret-value")
    assert "secret" not in done.out
    findings = {finding["name"]: finding for finding in json.loads(done.out)["findings"] if finding["area"] == "Models"}
    assert findings["openai"]["facts"] == {"usable": True, "variables_set": ["OPENAI_API_KEY"]}
    assert findings["azure"]["status"] == "missing"
    assert "still needed: AZURE_OPENAI_ENDPOINT" in findings["azure"]["text"]
    assert findings["openrouter"]["facts"] == {"usable": False, "variables_set": []}


async def test_doctor_with_json_names_plug_ins_parts_and_the_kernels_facts():
    told = json.loads((await arlm("doctor", "--json")).out)
    named = {finding["name"]: finding for finding in told["findings"]}
    assert told["ok"] is True
    assert {"openai", "demo"} <= set(named["providers"]["facts"]["names"])
    assert named["environments"]["facts"]["names"] == ["local", "process"]
    assert named["confinement"]["facts"] == {"parts": grade()}
    assert "Landlock" in named


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


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b'{"data": [{"id": "llama"}, {"id": "qwen"}]}', "answers at {at}; models: llama, qwen"),
        (200, b'{"data": null}', "answers at {at}; models: none loaded"),
        (404, b'{"error": "no"}', "something else answers at {at}"),
        (200, b"<html>", "something else answers at {at}"),
    ],
)
async def test_a_model_server_is_asked_for_its_models(monkeypatch, status, body, said):
    async def reply(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"GET /v1/models ")
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(reply, "127.0.0.1")
    at = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    monkeypatch.setenv("VLLM_BASE_URL", f"http://{at}/v1")
    async with server:
        probe = await probes.probe_server(ROWS["vllm"])
    assert probe.text.startswith(said.format(at=at))
    assert probe.worked == said.startswith("answers")


async def test_a_model_server_that_is_not_there_is_missing(monkeypatch, unused_tcp_port):
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{unused_tcp_port}")
    probe = await probes.probe_server(ROWS["ollama"])
    assert not probe.worked
    assert f"nothing answers at 127.0.0.1:{unused_tcp_port}" in probe.text


@pytest.mark.skipif(not hasattr(machine.os, "geteuid"), reason="a fact of Unix")
def test_the_kernels_facts_are_words_and_values():
    facts = list(machine.kernel_facts())
    assert facts[0][0] == "Landlock"
    assert all(isinstance(words, str) and words for _, words, _ in facts)
