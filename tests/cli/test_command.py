"""The command line itself: what goes where, flags, help, completion."""

import asyncio
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from arlm import __version__
from arlm.cli import exits, text
from arlm.cli.flags import FLAGS, NO_FLAG, read_flags
from arlm.cli.inputs import read_context
from arlm.errors import ConfigError
from arlm.options import declared, documentation
from commandline import ANSWER, ARLM, arlm, clean_environment, start

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
HEAVY = ("openai", "aiohttp", "genai_prices", "pydantic_core.nothing")
ECHO = "```repl\nanswer['content'] = repr(context)\nanswer['ready'] = True\n```"


def keyed(provider):
    return {"OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "sk-scripted"}


# -- what goes where ---------------------------------------------------------------------------------------------------


async def test_the_answer_alone_goes_to_standard_output(provider):
    done = await arlm("run", "What?", "-m", "openai/x", **keyed(provider))
    assert (done.code, done.out) == (0, "forty-two\n")
    assert "[1/30]" in done.err
    assert re.search(r"^1 turn, 1 call, [\d,]+ tokens, cost unknown, ", done.err, re.MULTILINE)


async def test_quiet_says_nothing_but_the_answer(provider):
    done = await arlm("run", "What?", "-m", "openai/x", "-q", **keyed(provider))
    assert (done.code, done.out, done.err) == (0, "forty-two\n", "")


async def test_verbose_shows_code_and_output(provider):
    await provider.configure({"turns": ["I count.\n```repl\nprint(6 * 7)\n```", ANSWER]})
    done = await arlm("run", "What?", "-m", "openai/x", "-v", **keyed(provider))
    assert "I count.\n    print(6 * 7)\n    42\n" in done.err


async def test_json_has_the_promised_keys(provider):
    done = await arlm("run", "What?", "-m", "openai/x", "--json", **keyed(provider))
    told = json.loads(done.out)
    assert list(told) == ["answer", "stop_reason", "usage", "cost_usd", "duration_s", "iterations", "run_id", "children"]
    assert (told["answer"], told["stop_reason"], told["iterations"], told["children"]) == ("forty-two", "answered", 1, [])
    assert told["usage"]["models"]["openai/x"]["calls"] == told["usage"]["total"]["calls"] == 1


async def test_a_reader_that_goes_away_is_no_error_with_words(provider):
    await provider.configure({"turns": ["```repl\nanswer['content'] = 'x' * 1_000_000\nanswer['ready'] = True\n```"]})
    process = await start("run", "What?", "-m", "openai/x", "-q", **keyed(provider))
    process._transport.get_pipe_transport(1).close()
    err = await process.stderr.read()
    assert await process.wait() == 141
    assert err == b""


async def test_progress_that_nobody_reads_does_not_end_the_run(provider):
    process = await start("run", "What?", "-m", "openai/x", **keyed(provider))
    process._transport.get_pipe_transport(2).close()
    out = await process.stdout.read()
    assert await process.wait() == 0
    assert out == b"forty-two\n"


async def test_all_flags_reach_the_run(provider, tmp_path):
    (tmp_path / "system.txt").write_text("You count {all} things.")
    await provider.configure({"turns": ["```repl\nprint(llm_query('q', model='fast'))\nprint(llm_query('r'))\n```", ANSWER]})
    words = ("--sampling", "temperature=0.5", "--sampling", "stop=END", "--sub-sampling", "max_tokens=9", "--sub-model", "openai/sub")
    words += ("--models", "fast=openai/small", "--system-prompt-file", str(tmp_path / "system.txt"), "--instructions", "Hurry.")
    words += ("-e", "process", "--environment-option", "transport=tcp", "--memory-limit", "1GiB", "--cell-timeout", "20")
    words += ("--max-iterations", "5", "--max-calls", "9", "--max-total-tokens", "100000", "--max-concurrency", "2", "--timeout", "60")
    words += ("--max-depth", "1", "--max-errors", "3", "--on-limit", "raise", "--log-dir", str(tmp_path / "logs"))
    done = await arlm("run", "What?", "-m", "openai/x", *words, **keyed(provider))
    assert (done.code, done.out) == (0, "forty-two\n"), done.err
    bodies = [request["body"] for request in await provider.requests()]
    root, *subs = bodies[0], *bodies[1:3]
    assert root["messages"][0] == {"role": "system", "content": "You count {all} things.\n\nHurry."}
    assert (root["temperature"], root["stop"]) == (0.5, "END")
    assert [(sub["model"], sub["max_completion_tokens"]) for sub in subs] == [("small", 9), ("sub", 9)]
    assert "[1/5]" in done.err
    assert len(list((tmp_path / "logs").iterdir())) == 1


# -- inputs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words", "seen"),
    [
        pytest.param("één\r\ntwo\n".encode(), (), "'één\\r\\ntwo\\n'", id="text, CRLF kept"),
        pytest.param(b"\xff\x00\r\n", ("--bytes",), "b'\\xff\\x00\\r\\n'", id="bytes"),
    ],
)
async def test_standard_input_arrives_unchanged(provider, given, words, seen):
    await provider.configure({"turns": [ECHO]})
    done = await arlm("run", "What?", "-", *words, "-m", "openai/x", "-q", given=given, **keyed(provider))
    assert (done.code, done.out) == (0, f"{seen}\n")


async def test_several_files_become_a_dict_of_path_to_text(provider, tmp_path):
    paths = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    for path in paths:
        Path(path).write_text(f"text of {Path(path).name}\r\n", newline="")
    await provider.configure({"turns": [ECHO]})
    done = await arlm("run", "What?", *paths, "-m", "openai/x", "-q", **keyed(provider))
    assert done.out == repr({path: f"text of {Path(path).name}\r\n" for path in paths}) + "\n"


def test_one_file_is_read_where_it_is(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x")
    assert read_context([str(path)], as_bytes=False) == path
    assert read_context([str(path)], as_bytes=True) == b"x"
    assert read_context([], as_bytes=False) is None


def test_a_pipe_is_read_once(tmp_path):
    reading, writing = os.pipe()
    os.write(writing, b"from a pipe\r\n")
    os.close(writing)
    assert read_context([f"/dev/fd/{reading}"], as_bytes=False) == "from a pipe\r\n"
    os.close(reading)


def test_a_terminal_as_standard_input_is_told_how_to_end(monkeypatch, capsys):
    terminal = io.TextIOWrapper(io.BytesIO(b"typed"))
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    assert read_context(["-"], as_bytes=False) == "typed"
    assert "Ctrl-D" in capsys.readouterr().err


# -- flags, help, completion -------------------------------------------------------------------------------------------


def test_every_option_has_a_flag_or_a_reason_for_having_none():
    assert sorted([flag.option for flag in FLAGS] + list(NO_FLAG)) == sorted(declared())


def test_flags_take_their_words_from_the_options():
    flags = {flag.option: flag for flag in FLAGS}
    assert flags["max_calls"].help() == f"{declared()['max_calls'].doc} Default: 5000."
    assert "None:" not in flags["model"].help()


def test_the_readmes_table_of_options_is_the_declared_one():
    assert README.partition("<!-- options -->\n")[2].partition("\n<!-- /options -->")[0] == documentation()


def test_the_readmes_exit_codes_are_the_ones_used():
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", README, re.MULTILINE))
    assert rows == {str(code.value): meaning for code, meaning in exits.MEANINGS.items()}


def test_help_lists_the_exit_codes_and_the_flags(here):
    done = here("run", "--help")
    assert done.code == 0
    assert all(str(code.value) in done.out for code in exits.Code)
    assert all(flag.spellings[0] in done.out for flag in FLAGS)


def test_no_command_at_all_shows_the_commands(here):
    done = here()
    assert done.code == 0
    assert all(command in done.out for command in ("run", "demo", "doctor"))


@pytest.mark.parametrize("word", ["--version", "--help"])
def test_version_and_help_import_no_sdk(word):
    code = f"import sys; sys.argv[1:] = [{word!r}]; from arlm.cli.main import main; main(); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=clean_environment())
    assert __version__ in done.stdout or "doctor" in done.stdout
    assert not [name for name in HEAVY if f"'{name}'" in done.stderr]


def test_the_shell_can_complete_commands_and_providers():
    def completed(words):
        environment = clean_environment(_ARLM_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))
        return subprocess.run([ARLM], capture_output=True, text=True, env=environment, check=False).stdout.split()

    assert completed("arlm d") == ["demo", "doctor"]
    assert "openai/" in completed("arlm run --model open")


def test_show_completion_prints_a_script():
    done = subprocess.run([ARLM, "--show-completion", "bash"], capture_output=True, text=True, env=clean_environment(), check=False)
    assert "_ARLM_COMPLETE" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("size", "number"),
    [("1000", 1000), ("512MB", 512_000_000), ("1gb", 10**9), ("2GiB", 2 * 1024**3), ("64m", 64 * 1024**2), ("1.5 kB", 1500)],
)
def test_sizes_have_units(size, number):
    assert read_flags({"memory_limit": size}) == {"memory_limit": number}


def test_values_are_json_where_they_are_json():
    read = read_flags({"sampling": ["temperature=0.2", "stop=END", 'extra_body={"a": [1]}', "seed=null"]})
    assert read == {"sampling": {"temperature": 0.2, "stop": "END", "extra_body": {"a": [1]}, "seed": None}}


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\x9b", "\r", "\x7f"])
def test_a_terminal_is_not_told_what_to_do_by_text(character):
    assert character not in text.printable(f"a{character}[2Jb\n\tc")
    assert text.printable("a\n\tb") == "a\n\tb"


def test_messages_are_in_the_command_lines_words():
    flags = {"model": "--model", "max_calls": "--max-calls"}
    assert exits.in_flags("pass model='provider/name', or max_calls", flags) == "pass --model provider/name, or --max-calls"
    assert exits.in_flags("the model is set by max_calls_more", flags) == "the model is set by max_calls_more"


@pytest.mark.parametrize(("value", "words"), [(0.44, "0.4 s"), (42.2, "42 s"), (185, "3:05"), (3723, "1:02:03")])
def test_seconds_are_readable(value, words):
    assert text.seconds(value) == words


def test_failures_of_each_kind_have_their_code():
    from arlm import CallLimit, ConnectionFailed, ProtocolError, RunTimeout, SandboxError

    kinds = {ConfigError("x"): 2, ConnectionFailed("x"): 3, CallLimit("max_calls", 1, 1): 4, RunTimeout("timeout", 1, 1): 4}
    kinds |= {SandboxError("x"): 5, ProtocolError("x"): 5, exits.Interrupted(2): 130, exits.Interrupted(15): 143, ValueError(): 1}
    assert {error: exits.code_of(error) for error in kinds} == kinds


async def test_on_a_terminal_the_counts_keep_themselves_up_to_date(provider, tmp_path):
    """Through a real pseudo-terminal: lines that stay for each turn, and a live line of counts while sub-calls run."""
    import pty

    turns = ["I ask.\n```repl\nr = llm_query_batched(['a', 'b', 'c'])\nprint('\\x1b[2J')\n```", ANSWER]
    await provider.configure({"turns": turns, "latency": 0.3})
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        ARLM, "run", "What?", "-m", "openai/x", "-v",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=theirs,
        env={**clean_environment(**keyed(provider)), "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(theirs)
    seen = await asyncio.to_thread(_read_all, ours)
    out = await process.stdout.read()
    assert await process.wait() == 0
    assert out == b"forty-two\n"
    assert "\x1b[2J" not in seen
    plain = re.sub(r"\x1b\[[0-9;]*m", "", seen)
    assert "sub-calls: 0 done, 3 open" in plain
    assert "[1/30] I ask. · 3 sub-calls" in plain


def _read_all(descriptor):
    parts = []
    try:
        while part := os.read(descriptor, 65_536):
            parts.append(part)
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(descriptor)
    return b"".join(parts).decode()
