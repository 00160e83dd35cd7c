"""The environments under test, and a Bench in the default one. A new environment is one more entry of SUBJECTS."""

import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from held import held

if "arlm.testing" not in sys.modules:  # else the asserts of cases fail without showing values
    pytest.register_assert_rewrite("arlm.testing")

from arlm.environments.local import LocalREPL
from arlm.environments.process import ProcessREPL
from arlm.guest.confine import grade
from arlm.testing import conformance
from arlm.testing.loopback import LoopbackREPL

# A confined worker has no /dev/shm, where the semaphores of multiprocessing live.
CONFINED = (
    {"multiprocessing_works": "closed by confinement; environment_options={'write': ['/dev/shm']} opens it"} if grade()["files"] else {}
)


def process(name: str, unmet: dict[str, str] = CONFINED, **options: Any) -> conformance.Subject:
    """The process environment with some options."""
    return conformance.Subject(name=name, environment=lambda: ProcessREPL(**options), unmet=unmet, alive=conformance.alive_here)


PROCESSES = [
    process("process-unix", transport="unix"),
    process("process-tcp", transport="tcp"),
    process("process-stdio", transport="stdio"),
    process("process-open", confine="off", unmet={}),
]

# What a thread of the host cannot keep, by reason; docs/environments.md tells users the same.
LOCAL_UNMET = {
    "what ends a process ends the host": [
        "os_exit_names_the_status_and_what_was_lost",
        "output_before_os_exit_is_kept",
        "os_exit_in_a_thread_and_from_an_import_ends_the_worker",
        "a_segmentation_fault_ends_only_the_worker",
        "output_before_a_segmentation_fault_is_kept",
        "a_worker_that_kills_itself_is_replaced",
        "a_worker_that_dies_between_cells_is_replaced",
        "a_session_goes_on_after_many_deaths",
        "a_death_cancels_the_calls_of_the_worker",
        "a_death_leaves_other_repls_of_the_place_alone",
        "the_answer_of_a_dead_worker_is_gone_and_can_be_set_again",
        "a_process_that_detached_itself_dies_with_its_worker",
    ],
    "descriptors, those of other sockets too, are the host's": [
        "a_worker_that_closes_every_descriptor_is_replaced",
        "a_worker_that_breaks_the_wire_is_replaced",
        "descriptors_that_the_cell_closed_are_restored",
        "descriptors_that_the_cell_redirected_are_restored",
    ],
    "what is written to descriptors 1 and 2, by os.write or a subprocess, goes to the host's": [
        "python_and_descriptor_output_stand_in_order",
        "output_of_subprocesses_stands_in_order",
        "output_of_a_process_left_running_shows_in_the_next",
        "bytes_that_are_no_text_do_no_harm",
    ],
    "a call into C cannot be interrupted, and one that keeps Python's lock stops the host": [
        "a_loop_in_c_is_killed",
        "a_regular_expression_without_end_is_killed_or_stopped",
        "a_killed_cell_keeps_what_it_printed",
        "processes_of_a_killed_cell_are_dead",
    ],
    "a wait for a lock, a thread or a process is a call into C: the thread is left behind": [
        "waiting_for_a_subprocess_is_stopped",
        "waiting_for_a_lock_or_thread_is_stopped",
    ],
    "a thread that swallows every interrupt is left behind, not killed": ["a_loop_that_swallows_everything_is_killed"],
    "no signal is needed to stop it, so it is stopped and nothing is lost": ["a_cell_that_blocks_the_signal_is_killed"],
    "the error of a cell's thread goes to the host's threading.excepthook": [
        "computing_beside_a_call_that_hangs_is_stopped_and_the_call_cancelled"
    ],
    "environment variables are the host's": ["the_environment_holds_nothing_of_the_host"],
    "the working directory is the host's": [
        "the_working_directory_is_private_and_writable",
        "a_cell_may_change_directory",
        "a_module_written_into_the_working_directory_can_be_imported",
        "two_repls_of_a_place_do_not_see_each_other",
    ],
    "memory is the host's": [
        "an_allocation_above_the_memory_limit_is_a_memory_error",
        "the_memory_limit_leaves_what_it_promises",
    ],
    "a fork of the host copies the host": [
        "a_process_that_forks_in_a_cell_goes_on_alone",
        "a_forked_child_that_raises_or_exits_ends_alone",
        "a_call_in_a_forked_process_is_an_error_there",
        "multiprocessing_works",
    ],
    "processes that a cell starts are the host's, and nobody ends them": [
        "a_process_that_detached_itself_dies_with_the_repl",
        "a_process_that_forks_without_end_dies_with_the_repl",
    ],
    "sys.modules['__main__'] is the host's, where pickle looks for a cell's classes": ["classes_dataclasses_and_pickle_work_in_main"],
}
LOCAL = conformance.Subject(
    name="local", environment=LocalREPL, unmet={name: reason for reason, names in LOCAL_UNMET.items() for name in names}
)
LOOPBACK = conformance.Subject(name="loopback", environment=LoopbackREPL, unmet=CONFINED, alive=conformance.alive_here)
SUBJECTS = [*PROCESSES, LOOPBACK, LOCAL]


@pytest.fixture(params=[*PROCESSES, LOOPBACK, pytest.param(LOCAL, marks=pytest.mark.unmeasured)], ids=str)
def subject(request: pytest.FixtureRequest) -> conformance.Subject:
    """Each environment in turn."""
    return request.param


@pytest.fixture(params=PROCESSES, ids=str)
def process_subject(request: pytest.FixtureRequest) -> conformance.Subject:
    """Each kind of process in turn."""
    return request.param


@pytest.fixture
async def bench() -> AsyncIterator[conformance.Bench]:
    """A Bench in the default environment."""
    async with held(conformance.open_bench(SUBJECTS[0])) as bench:
        yield bench
