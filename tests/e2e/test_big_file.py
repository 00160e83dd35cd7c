"""`arlm run` over a file of megabytes, as a person starts it, against a provider in a process of its own."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from commandline import arlm

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def transcript():
    """The scenario of benchmarks/transcript.py."""
    spec = importlib.util.spec_from_file_location("transcript", ROOT / "benchmarks" / "transcript.py")
    module = sys.modules["transcript"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["transcript"]


async def test_hundreds_of_sub_calls_at_once_read_a_file_of_megabytes(transcript, tmp_path):
    book = transcript.log_book()
    assert len(book.text.encode()) > 5_000_000
    seen = await transcript.perform(book, tmp_path, "--json", "--log-dir", "logs")
    assert seen.code == 0, seen.err
    told = json.loads(seen.out)
    assert told["answer"] == book.answer
    assert told["stop_reason"] == "answered"
    assert seen.stats["sub_calls"] >= 400
    assert seen.stats["max_in_flight"] >= 200
    assert told["usage"]["total"]["calls"] == seen.stats["calls"]
    assert told["usage"]["total"]["input_tokens"] == seen.stats["prompt_tokens"]
    assert told["cost_usd"] == pytest.approx(0.00002 * seen.stats["calls"])
    (log,) = (tmp_path / "logs").iterdir()
    assert told["run_id"] in log.name
    assert "sk-scripted" not in log.read_text("utf-8") + seen.err


def test_the_saved_transcript_shows_the_answer_of_this_scenario(transcript):
    page = (ROOT / "docs" / "transcript.md").read_text("utf-8")
    assert f"```text\n{transcript.log_book().answer}\n```" in page
    assert "The answer is right." in page


async def test_the_demo_reads_millions_of_characters_and_checks_its_answer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = await arlm("demo")
    assert done.code == 0, done.err
    assert "Checked: right." in done.out
    assert "not a language model" in done.err
    facts = dict(line.split(maxsplit=1) for line in done.out.split("What happened:")[1].splitlines() if line.startswith("  "))
    assert int(facts["context"].split()[0].replace(",", "")) > 4_000_000
    sub_calls = [int(word.replace(",", "")) for word in facts["sub-calls"].split() if word[0].isdigit()]
    assert sub_calls[0] >= 300
    assert sub_calls[1] >= 200
    assert done.out.count("arlm doctor") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.docker
async def test_the_demo_runs_in_a_container_when_it_is_told_so(engine):
    where = ("-e", "docker", "--environment-option", f"image={engine.image}", "--environment-option", f"engine={engine.url}")
    done = await arlm("demo", "--tickets", "400", *where)
    assert done.code == 0, done.err
    assert "environment: docker" in done.err
    assert "Checked: right." in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(("-e", "dock"), "unknown environment 'dock'", id="environment"),
        pytest.param(("--environment-option", "transport"), "write NAME=VALUE", id="option"),
    ],
)
async def test_the_demo_refuses_a_place_that_there_is_none_of(words, said):
    done = await arlm("demo", *words)
    assert done.code == 2
    assert said in done.err
    assert done.out == ""
