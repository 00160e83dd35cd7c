"""The checks, one session each. The README's test command, CI and a developer all run these."""

import os

import nox

nox.needs_version = ">=2025.5.1"  # the first with `default=` and dependency groups settled as used here
nox.options.reuse_venv = "yes"

PYPROJECT = nox.project.load_toml("pyproject.toml")
COVERAGE_FLOOR = 85  # percent of lines and branches; only ever raised


def group(name: str) -> tuple[str, ...]:
    """The requirements of a dependency group; read here, because the pip of a fresh Python 3.11 knows no --group."""
    return nox.project.dependency_groups(PYPROJECT, name)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and likely mistakes: ruff, as linter and as formatter."""
    session.install(*group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check", *session.posargs)


@nox.session
def types(session: nox.Session) -> None:
    """Types: mypy, strict."""
    session.install(".", *group("lint"), *group("test"))
    session.run("mypy", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The whole test suite on the installed package, with the coverage gate; with arguments, only what they name and no gate."""
    session.install(".", *group("test"))
    package = str(session.run("python", "-c", "import arlm; print(*arlm.__path__)", silent=True)).strip()
    session.run("coverage", "erase")
    if not session.posargs:
        session.run("pytest", "-m", "unmeasured")
    measured = session.posargs or ("-m", "not unmeasured")
    session.run("coverage", "run", f"--source={package}", "-m", "pytest", *measured)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report", f"--fail-under={0 if session.posargs else COVERAGE_FLOOR}")


@nox.session(python=["3.11", "3.12", "3.13"], default=False)
def versions(session: nox.Session) -> None:
    """The test suite on each supported Python that is installed."""
    session.install(".", *group("test"))
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def guests(session: nox.Session) -> None:
    """The guest's side on every Python from 3.9 on that is found, confined: `nox -s guests -- PYTHON...` adds some that are not on PATH."""
    session.install(".", *group("test"))
    session.run(
        "pytest", "tests/guest/test_pythons.py", env={"ARLM_GUEST_CASES": "all", "ARLM_GUEST_PYTHONS": os.pathsep.join(session.posargs)}
    )


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """One benchmark: `nox -s bench -- benchmarks/NAME.py`; benchmarks/README.md says what each measures."""
    session.install(".", *group("test"))
    session.run("python", *(session.posargs or session.error("name a file of benchmarks/")))
