import asyncio
import json
import random

import pytest

from arlm.cli import demo
from arlm.cli.display import Display
from arlm.cli.tickets import ASKS, CLOSINGS, OPENINGS, SPEAKS_OF_IT, STORY, generate
from arlm.clients.demo import DemoLM, asks_for_money_back, read_tickets


@pytest.mark.parametrize("sentence", ASKS)
def test_every_way_of_asking_for_money_is_understood(sentence):
    assert asks_for_money_back(f"The lid is broken. {sentence} Best regards.")


@pytest.mark.parametrize("sentence", [*SPEAKS_OF_IT, *STORY, *CLOSINGS, *OPENINGS])
def test_what_only_speaks_of_money_or_of_other_things_does_not_count(sentence):
    assert not asks_for_money_back(f"The lid is broken. {sentence} Best regards.")


def test_searching_for_one_word_would_give_another_count():
    tickets = generate(2_000, seed=1)
    assert abs(tickets.text.lower().count("refund") - tickets.truth["total"]) > 100


@pytest.mark.parametrize("seed", range(5))
def test_the_stand_in_finds_what_the_generator_knows(seed):
    tickets = generate(300, seed)
    found = json.loads(read_tickets(f"Who asks for their money back?\n\n{tickets.text}"))
    assert len(found) == tickets.truth["total"]


def test_the_same_seed_makes_the_same_tickets():
    assert generate(50, 3) == generate(50, 3)
    assert generate(50, 3) != generate(50, 4)


async def test_the_stand_in_says_of_other_prompts_what_it_is():
    for messages in ("What is the capital of Norway?", [{"role": "system", "content": ""}, {"role": "user", "content": "Sum up."}]):
        completion = await asyncio.wait_for(DemoLM().acompletion(messages), 10)
        assert "arlm's demo model" in completion.text


def test_a_wrong_answer_is_said_and_exits_with_1(monkeypatch, capsys):
    honest = read_tickets
    chance = random.Random(0)

    def forgetful(prompt):
        found = honest(prompt)
        return found if not found.startswith("[") else json.dumps([number for number in json.loads(found) if chance.random() < 0.9])

    monkeypatch.setattr("arlm.clients.demo.read_tickets", forgetful)
    monkeypatch.setattr("arlm.clients.demo.ROOT_S", 0)
    monkeypatch.setattr("arlm.clients.demo.SUB_S", (0, 0))
    assert demo.show_demo(1, 400, Display()) == 1
    assert "Checked: WRONG" in capsys.readouterr().out
