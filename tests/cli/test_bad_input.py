"""Bad input, one by one: a message that says what to do, an exit code, no traceback, and nothing on standard output."""

import io
import json
import os
import sys

import pytest

from commandline import ANSWER, arlm

QUESTION = ("run", "How long is it?")


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("Once upon a time.\n" * 100)
    return str(path)


def check(done, code, *words):
    assert done.code == code, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err
    assert done.err.rstrip().splitlines()[-1].startswith("arlm: ")


# -- configuration and files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param((), ("no key was found", "OPENAI_API_KEY", "--model provider/name", "arlm demo"), id="no key at all"),
        pytest.param(("-m", "openai/gpt-5-mini"), ("'openai' needs a key: set OPENAI_API_KEY",), id="no key for the model"),
        pytest.param(("-m", "azure/x"), ("set AZURE_OPENAI_API_KEY",), id="no key for azure"),
        pytest.param(("-m", "opnai/gpt-5-mini"), ("unknown provider 'opnai'", "did you mean 'openai'", "vllm"), id="unknown provider"),
        pytest.param(("-m", "gpt-5-mini"), ("names no provider", "did you mean 'openai/gpt-5-mini'"), id="model without a provider"),
        pytest.param(("-m", "openai"), ("provider alone", "openai/name"), id="provider without a model"),
        pytest.param(("-m", "openai/"), ("ends after its provider",), id="provider and a slash"),
        pytest.param(("-m", "demo/gpt"), ("demo/demo",), id="unknown demo model"),
        pytest.param(("-m", "demo/demo", "-e", "proces"), ("unknown environment 'proces'", "did you mean 'process'"), id="environment"),
        pytest.param(
            ("-m", "demo/demo", "--environment-option", "transpot=tcp"),
            ("unknown option of the environment 'process' 'transpot'", "did you mean 'transport'"),
            id="option of the environment",
        ),
        pytest.param(("-m", "demo/demo", "--environment-option", "tcp"), ("write NAME=VALUE",), id="option without a value"),
        pytest.param(("-m", "demo/demo", "--max-iteration", "3"), ("No such option", "--max-iterations"), id="unknown flag"),
        pytest.param(("-m", "demo/demo", "--max-iterations", "many"), ("'--max-iterations'", "valid integer"), id="not a number"),
        pytest.param(("-m", "demo/demo", "--max-calls", "0"), ("--max-calls must be a whole number of at least 1",), id="too small"),
        pytest.param(("-m", "demo/demo", "--on-limit", "stop"), ("--on-limit must be 'answer' or 'raise'",), id="not a choice"),
        pytest.param(("-m", "demo/demo", "--max-cost-usd", "1"), ("--max-cost-usd is set", "price of demo/demo is unknown"), id="price"),
        pytest.param(("-m", "demo/demo", "--memory-limit", "lots"), ("no size", "512MB"), id="memory limit"),
        pytest.param(("-m", "demo/demo", "--memory-limit", "1kB"), ("--memory-limit must be",), id="tiny memory limit"),
        pytest.param(("-m", "demo/demo", "--max-depth", "0"), ("--max-depth must be a whole number of at least 1",), id="depth"),
        pytest.param(("-m", "demo/demo", "--sub-environment", "moon"), ("unknown environment 'moon'",), id="children's environment"),
        pytest.param(("-m", "demo/demo", "--system-prompt-file", "nowhere.txt"), ("nowhere.txt cannot be read",), id="prompt file"),
        pytest.param(
            ("-m", "demo/demo", "--system-prompt-file", "a", "--system-prompt", "b"), ("exclude each other",), id="two system prompts"
        ),
        pytest.param(("-m", "demo/demo", "--log-dir", "/dev/null/logs"), ("--log-dir: ", "cannot be written"), id="log folder"),
        pytest.param(("-m", "demo/demo", "--bytes"), ("--bytes goes with one FILE",), id="bytes of nothing"),
        pytest.param(("a.txt", "-"), ("cannot be mixed",), id="standard input among files"),
        pytest.param(("a.txt", "b.txt", "--bytes"), ("--bytes takes one FILE",), id="bytes of several"),
        pytest.param(("nowhere.txt",), ("nowhere.txt cannot be read: No such file",), id="no such file"),
        pytest.param(("/",), ("/ is a folder; give its files",), id="folder"),
    ],
)
def test_bad_configuration_is_said_in_the_command_lines_words(here, words, said):
    check(here(*QUESTION, *words), 2, *said)


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(here, prompt, book):
    check(here("run", prompt, book, "-m", "demo/demo"), 2, "the prompt is empty")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(here, book):
    os.chmod(book, 0)
    check(here(*QUESTION, book, "-m", "demo/demo"), 2, f"{book} cannot be read: Permission denied")


def test_a_link_that_leads_nowhere_is_named(here, tmp_path):
    link = tmp_path / "circle.txt"
    link.symlink_to(link)
    check(here(*QUESTION, str(link), "-m", "demo/demo"), 2, f"{link} cannot be read: ")


def test_a_file_that_is_not_utf8_is_refused_with_the_byte_and_the_way_out(here, tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9 au lait")
    check(here(*QUESTION, str(path), "-m", "demo/demo"), 2, f"{path} is not UTF-8 text: byte 0xe9 at position 3", "--bytes")


@pytest.mark.parametrize("several", [False, True])
def test_empty_files_are_refused(here, tmp_path, several):
    paths = [tmp_path / name for name in ("a", "b")[: 1 + several]]
    for path in paths:
        path.touch()
    check(here(*QUESTION, *map(str, paths), "-m", "demo/demo"), 2, "nothing to ask about")


def test_a_missing_file_among_several_is_named(here, book, tmp_path):
    check(here(*QUESTION, book, str(tmp_path / "gone.txt"), "-m", "demo/demo"), 2, "gone.txt cannot be read: No such file")


@pytest.mark.parametrize(("given", "said"), [(b"", "standard input is empty"), (b"ab\xff", "standard input is not UTF-8 text: byte 0xff")])
def test_bad_standard_input_is_refused(here, monkeypatch, given, said):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    check(here(*QUESTION, "-", "-m", "demo/demo"), 2, said)


def test_closed_standard_input_is_refused(here, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it then
    check(here(*QUESTION, "-", "-m", "demo/demo"), 2, "standard input is closed")


def test_with_json_an_error_is_an_object_on_standard_output_too(here):
    done = here(*QUESTION, "-m", "gpt-5-mini", "--json")
    assert done.code == 2
    error = json.loads(done.out)
    assert error["error"]["type"] == "ConfigError"
    assert error["error"]["exit_code"] == 2
    assert "names no provider" in error["error"]["message"]
    assert (error["usage"], error["partial"]) == (None, None)
    assert "names no provider" in done.err


@pytest.mark.parametrize("words", [("run", "--json"), ("run", "q", "--nonsense", "--json")])
def test_with_json_a_usage_error_is_an_object_too(here, words):
    done = here(*words)
    assert done.code == 2
    assert json.loads(done.out)["error"]["exit_code"] == 2


def test_an_unexpected_error_shows_its_traceback_and_asks_for_a_report(here, monkeypatch):
    monkeypatch.setattr("arlm.cli.inputs.read_context", lambda *_args, **_options: 1 / 0)
    done = here(*QUESTION)
    assert done.code == 1
    assert "ZeroDivisionError" in done.err
    assert "Please report it" in done.err


async def test_a_folder_is_refused_by_the_installed_command(tmp_path):
    check(await arlm(*QUESTION, str(tmp_path), "-m", "demo/demo"), 2, "is a folder")


# -- providers ---------------------------------------------------------------------------------------------------------


async def ask(provider, *words, model="openai/gpt-5-mini", key="sk-scripted-key", url=None):
    return await arlm(*QUESTION, *words, "-m", model, quick=True, OPENAI_BASE_URL=url or provider.url, OPENAI_API_KEY=key)


async def test_a_wrong_key_names_its_variable_and_never_shows_it(provider):
    await provider.configure({"turns": [ANSWER], "key": "another"})
    done = await ask(provider, key="sk-wrong-key-1234567890")
    check(done, 3, "openai 401", "OPENAI_API_KEY")
    assert "1234567890" not in done.err


async def test_a_model_that_does_not_exist_is_not_found(provider):
    await provider.configure({"turns": [ANSWER], "missing_models": ["gpt-9"]})
    check(await ask(provider, model="openai/gpt-9"), 3, "openai 404", "model's name")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("429", "openai 429: too many requests"),
        ("500", "openai 500: the provider failed"),
        ("cut", "the connection to"),
        ("reset", "the connection to"),
        ("invalid_json", "the reply is not valid JSON"),
    ],
)
async def test_a_fault_that_does_not_end_is_tried_again_and_then_said(provider, fault, said):
    await provider.configure({"turns": [ANSWER], "error_rates": {fault: 1.0}, "retry_after": "0"})
    done = await ask(provider)
    calls = (await provider.stats())["calls"]
    assert calls > 1
    check(done, 3, said, "tries again in", f"used so far: {calls} calls")


async def test_a_web_page_instead_of_a_provider_asks_about_the_base_url(provider):
    await provider.configure({"turns": [ANSWER], "error_rates": {"html": 1.0}})
    check(await ask(provider), 3, "a web page came back", provider.url)


async def test_a_server_that_is_not_there_is_said_with_its_address(provider, unused_tcp_port):
    url = f"http://127.0.0.1:{unused_tcp_port}/v1"
    check(await ask(provider, url=url), 3, f"{url} cannot be reached: is the server running there?")


async def test_a_base_url_that_is_none_is_bad_configuration(provider):
    check(await ask(provider, url="localhost:8000"), 2, "must begin with http:// or https://", "OPENAI_BASE_URL")


async def test_a_model_that_answers_nothing_is_a_failed_provider(provider):
    await provider.configure({"turns": [""]})
    check(await ask(provider), 3, "answered nothing 3 times in a row", "used so far: 3 calls")


async def test_a_model_that_only_writes_prose_ends_by_iterations_and_stderr_says_so(provider):
    await provider.configure({"turns": ["I would start by reading it."]})
    done = await ask(provider, "--max-iterations", "3")
    assert (done.code, done.out) == (0, "I would start by reading it.\n")
    assert "all turns were used and the model never wrote code" in done.err


async def test_a_failure_with_json_says_its_status_and_what_was_used(provider):
    await provider.configure({"turns": [ANSWER], "error_rates": {"500": 1.0}})
    done = await ask(provider, "--json")
    told = json.loads(done.out)
    assert done.code == 3
    assert told["error"]["type"] == "Overloaded"
    assert told["error"]["status"] == 500
    assert told["error"]["provider"] == "openai"
    assert told["usage"]["total"]["failed"] == 6


# -- limits and the sandbox --------------------------------------------------------------------------------------------


async def test_a_limit_that_is_to_raise_ends_without_an_answer(provider):
    await provider.configure({"turns": ["```repl\nprint(llm_query_batched(['a'] * 5))\n```"]})
    done = await ask(provider, "--max-calls", "3", "--on-limit", "raise")
    check(done, 4, "--max-calls reached: 2 of 3 used", "there is no answer", "used so far: 2 calls")


async def test_a_limit_with_json_carries_the_partial_result(provider):
    await provider.configure({"turns": ["```repl\nprint(llm_query_batched(['a'] * 5))\n```"]})
    done = await ask(provider, "--max-calls", "3", "--on-limit", "raise", "--json")
    told = json.loads(done.out)
    assert done.code == 4
    assert (told["error"]["limit"], told["error"]["allowed"]) == ("max_calls", 3)
    assert told["partial"]["stop_reason"] == "max_calls"


async def test_a_limit_that_lets_answer_exits_with_0_and_says_so(provider):
    await provider.configure({"turns": ["```repl\nprint(llm_query_batched(['a'] * 5))\n```", "five, I think"]})
    done = await ask(provider, "--max-calls", "3", "--quiet")
    assert (done.code, done.out) == (0, "five, I think\n")
    assert "max_calls was reached" in done.err


async def test_a_timeout_ends_without_an_answer(provider):
    await provider.configure({"turns": [ANSWER], "latency": 30})
    check(await ask(provider, "--timeout", "0.5"), 4, "timeout reached")


async def test_a_context_that_the_memory_limit_cannot_hold_is_a_failed_sandbox(provider, tmp_path):
    path = tmp_path / "large.txt"
    path.write_text("x" * 120_000_000)
    check(await ask(provider, str(path), "--memory-limit", "64MB"), 5, "--memory-limit is 64,000,000 bytes")
