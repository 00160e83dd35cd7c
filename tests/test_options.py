import pytest

import arlm
from arlm.options import declared, resolve


def test_every_pinned_option_has_its_pinned_default():
    pinned = {
        "context": None, "model": None, "sub_model": None, "models": {}, "environment": "process", "environment_options": {},
        "sub_environment": None, "max_depth": 1, "max_iterations": 30, "max_concurrency": 256, "max_repls": 256, "max_calls": 5_000,
        "max_total_tokens": None, "max_cost_usd": None, "timeout": None, "cell_timeout": 300, "memory_limit": None, "max_errors": None,
        "on_limit": "answer", "output_type": str, "tools": {}, "sub_tools": None, "system_prompt": None, "instructions": None,
        "compaction": None, "sampling": {}, "sub_sampling": {}, "log_dir": None, "on_event": None, "call_timeout": None, "prices": {},
    }  # fmt: skip
    assert {name: option.default for name, option in declared().items()} == pinned


def test_an_unknown_option_names_the_nearest_one_and_all_there_are():
    with pytest.raises(arlm.ConfigError, match=r"did you mean 'max_iterations'.*There is: context, model"):
        resolve({"max_iteration": 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_iterations", 0), ("max_iterations", "5"), ("max_iterations", True), ("max_calls", 1.5), ("timeout", -1),
        ("timeout", float("inf")),
        ("on_limit", "stop"), ("sampling", []), ("system_prompt", 3), ("on_event", "print"), ("memory_limit", 1), ("max_cost_usd", 0),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_refused_by_name(name, value):
    with pytest.raises(arlm.ConfigError, match=f"^{name} must be "):
        resolve({name: value})


def test_an_option_without_effect_yet_is_refused_rather_than_ignored():
    with pytest.raises(arlm.ConfigError, match=r"^compaction: .* yet"):
        resolve({"compaction": 0.8})


def test_options_given_to_a_run_go_over_those_of_the_object():
    base = resolve({"max_iterations": 3, "max_calls": 7})
    assert resolve({"max_calls": 9}, base=base)["max_iterations"] == 3
    assert resolve({"max_calls": 9}, base=base)["max_calls"] == 9
