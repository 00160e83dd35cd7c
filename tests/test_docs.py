"""The documents say what is so: commands, links, code."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

import arlm

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
INSTALL = "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/arlm demo"
TEST = "python3 -m venv .venv && .venv/bin/pip install -q nox && .venv/bin/nox"


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def links(text: str) -> list[str]:
    """Link targets outside of code blocks."""
    prose = re.sub(r"^(`{3,}).*?^\1`*$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose))


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings make, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("command", [INSTALL, TEST])
def test_the_readme_has_each_command_as_a_block_of_its_own(command):
    assert blocks(README, "console").count(command + "\n") == 1


def test_ci_runs_the_readmes_test_command_from_anywhere(tmp_path):
    printed = subprocess.run([ROOT / ".ci" / "run", "--print"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert printed == TEST + "\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in links(page.read_text("utf-8")):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT), target
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text("utf-8")), target


@pytest.mark.parametrize(
    ("page", "code"),
    [
        pytest.param(page.name, code, id=f"{page.name}-{n}")
        for page in PAGES
        for n, code in enumerate(blocks(page.read_text("utf-8"), "python"))
    ],
)
def test_python_in_the_documents_compiles(page, code):
    compile(code, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_documents_name_no_path_of_one_machine(page):
    assert not re.search(r"(?<![\w.])/(work|root|home|tmp|Users)/", page.read_text("utf-8"))


@pytest.mark.skipif(not hasattr(arlm, "run_sync"), reason="the loop is not there yet")
def test_the_readme_example_that_needs_no_provider_runs(capsys):
    (example,) = [code for code in blocks(README, "python") if "run_sync" in code]
    exec(compile(example, "README.md", "exec", dont_inherit=True), {"__name__": "readme"})
    assert capsys.readouterr().out == "1000000\n"
