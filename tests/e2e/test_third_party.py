"""examples/arlm-quill, installed by pip: a provider that is somebody else's package is used and listed like a built-in one."""

import asyncio
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import arlm
from arlm.plugins import load
from commandline import arlm as command
from quill_server import Quill

EXAMPLE = Path(__file__).parents[2] / "examples" / "arlm-quill"
KEY = "quill-key"
COUNT = "```repl\nnotes = llm_query_batched([f'note {n}' for n in range(20)])\nanswer.update(content=','.join(notes), ready=True)\n```"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder into which pip has installed the example, and nothing else."""
    folder = tmp_path_factory.mktemp("quill")
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    target = folder / "target"
    done = subprocess.run([*pip, "--target", target, folder / "source"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture
def quill_module(installed, monkeypatch):
    """The package, importable in this process, under the name that the command line's process knows it by."""
    monkeypatch.syspath_prepend(str(installed))
    load.cache_clear()
    yield importlib.import_module("arlm_quill")
    del sys.modules["arlm_quill"]
    load.cache_clear()


@pytest.fixture
def broken(tmp_path):
    """A folder with a package whose provider cannot be imported."""
    info = tmp_path / "cracked-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cracked\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[arlm.clients]\ncracked = cracked_plugin:provider\n")
    (tmp_path / "cracked_plugin.py").write_text("raise RuntimeError('this plug-in is for another version')\n")
    return tmp_path


def writes(turns):
    """Plays the root of a run, and answers sub-calls with their own text."""
    return COUNT if turns[0]["role"] == "system" else f"read {turns[0]['text']}"


def variables(quill, *folders):
    return {"PYTHONPATH": ":".join(map(str, folders)), "QUILL_URL": quill.url, "QUILL_KEY": KEY}


async def test_a_run_uses_it_through_the_command_line_alone(installed):
    async with Quill(writes) as quill:
        done = await command("run", "What?", "-m", "quill/small", "--json", "-q", **variables(quill, installed))
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["answer"] == ",".join(f"read note {number}" for number in range(20))
    used = told["usage"]["models"]["quill/small"]
    assert (used["calls"], used["cost_usd"]) == (21, None)
    subs = [request for request in quill.requests if request["turns"][0]["role"] == "user"]
    assert len(subs) == 20
    root = next(request for request in quill.requests if request["turns"][0]["role"] == "system")
    read = sum(len(turn["text"]) for turn in root["turns"]) + sum(len(request["turns"][0]["text"]) for request in subs)
    assert used["input_tokens"] == read


async def test_it_is_listed_with_its_variables_and_without_their_values(installed):
    async with Quill(writes) as quill:
        done = await command("models", "--json", **variables(quill, installed))
    (listed,) = [provider for provider in json.loads(done.out)["providers"] if provider["name"] == "quill"]
    assert listed["added_by"] == "arlm-quill 0.1.0"
    assert listed["variables"] == {"QUILL_URL": True, "QUILL_KEY": True}
    assert listed["usable"] is True
    assert KEY not in done.out
    assert quill.url not in done.out


async def test_a_broken_plug_in_is_named_and_disturbs_no_other(installed, broken):
    async with Quill(writes) as quill:
        found = variables(quill, installed, broken)
        listing, run, asked = await asyncio.gather(
            command("models", **found),
            command("run", "What?", "-m", "quill/small", "-q", **found),
            command("run", "What?", "-m", "cracked/x", **found),
        )
    assert listing.code == 0
    assert re.search(r"^ok  quill ", listing.out, re.MULTILINE)
    assert re.search(r"^!!  cracked .*RuntimeError: this plug-in is for another version", listing.out, re.MULTILINE)
    assert run.code == 0
    assert run.out.startswith("read note 0,")
    assert asked.code == 2
    assert "'cracked' (from cracked) could not be loaded" in asked.err


async def test_an_option_that_the_service_does_not_have_is_refused_before_anything_is_sent(installed):
    async with Quill(writes) as quill:
        done = await command("run", "What?", "-m", "quill/small", "--sampling", "seed=7", **variables(quill, installed))
    assert done.code == 2
    assert "'quill' has no sampling option 'seed'; there is: temperature, max_tokens, stop" in done.err
    assert quill.requests == []


async def test_options_that_it_has_are_translated(quill_module):
    async with Quill(lambda _turns: "yes") as quill:
        lm = quill_module.QuillLM("small", url=quill.url, key=KEY)
        completion = await lm.acompletion("hi", sampling={"max_tokens": 9, "stop": ["END"], "temperature": None})
    assert (completion.text, completion.finish_reason, completion.model) == ("yes", "stop", "quill/small")
    assert (completion.usage.input_tokens, completion.usage.output_tokens) == (2, 3)
    assert quill.requests[0]["settings"] == {"longest": 9, "until": ["END"]}


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, arlm.BadRequest),
        (403, arlm.AuthError),
        (408, arlm.ConnectionFailed),
        (413, arlm.ContextTooLong),
        (429, arlm.RateLimited),
        (451, arlm.Refused),
        (500, arlm.Overloaded),
    ],
)
async def test_a_status_becomes_one_of_arlms_errors(quill_module, status, error):
    async with Quill(lambda _turns: (status, {"Retry-After": "2"}, b'{"error": {"message": "no, says ' + KEY.encode() + b'"}}')) as quill:
        with pytest.raises(error, match=r"no, says \*\*\*") as caught:
            await quill_module.QuillLM("small", url=quill.url, key=KEY).acompletion("hi")
    assert type(caught.value) is error
    assert (caught.value.provider, caught.value.status, caught.value.retry_after) == ("quill", status, 2.0)


async def test_a_wrong_key_is_not_shown(quill_module):
    async with Quill(lambda _turns: "yes") as quill:
        with pytest.raises(arlm.AuthError, match="check QUILL_KEY") as caught:
            await quill_module.QuillLM("small", url=quill.url, key="wrong-key").acompletion("hi")
    assert "wrong-key" not in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ((200, {"Content-Length": "100"}, b'{"text": "half'), arlm.ConnectionFailed),
        ((200, {}, b'{"text": "half'), arlm.ConnectionFailed),
        ((200, {}, b'{"hello": "world"}'), arlm.BadRequest),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), arlm.BadRequest),
    ],
    ids=["cut off", "no JSON", "no text", "a redirect"],
)
async def test_a_reply_that_is_none_is_a_failed_call(quill_module, reply, error):
    once = iter([reply])

    def write(_turns):
        return next(once)

    async with Quill(write) as quill:
        lm = quill_module.QuillLM("small", url=quill.url, key=KEY)
        call = asyncio.ensure_future(lm.acompletion("hi"))
        if "Content-Length" in reply[1]:
            await _until(lambda: quill.requests)
            await quill.__aexit__()
        with pytest.raises(error) as caught:
            await call
    assert type(caught.value) is error


async def test_a_cancelled_call_closes_its_connection(quill_module):
    async with Quill(lambda _turns: None) as quill:
        call = asyncio.ensure_future(quill_module.QuillLM("small", url=quill.url, key=KEY).acompletion("hi"))
        await quill.waiting.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await _until(lambda: quill.cut == 1)
    assert call.cancelled()


async def _until(condition):
    while not condition():
        await asyncio.sleep(0.001)
