"""The input of ``arlm demo``: support tickets in free text, and how many of their writers ask for money back. One seed, one input."""

from __future__ import annotations

import random
from dataclasses import dataclass

PRODUCTS = ("kettle", "lamp", "radio", "scale", "toaster")
ASKERS = 0.3  # part of the tickets that ask for money back
DECOYS = 0.3  # part that speaks of it and does not ask

ASKS = (
    "Please refund the full price.",
    "I want my money back, and soon.",
    "Kindly reverse the charge on my card.",
    "I expect you to return the amount to my account this week.",
    "How do I get reimbursed for this?",
    "Could you credit the purchase to the card that I used?",
    "I would like to have back what I paid.",
    "You owe me the sum that I spent on it, please transfer it.",
    "I insist that the payment is returned.",
    "I'd rather have my money back than a second broken one.",
)
SPEAKS_OF_IT = (
    "I do not want a refund, a new cover would be enough.",
    "The refund for my last order arrived on Monday, thank you for that.",
    "A replacement is fine with me, no need to return any money.",
    "My neighbour got a refund for hers, but mine can be repaired.",
    "I read your refund policy before I ordered, and it is clear.",
    "You have already reversed the charge, so that part is settled.",
    "Please send a spare part instead of a refund.",
    "I never asked for my money back, whatever the note in my file says.",
)
OPENINGS = (
    "Hello, I bought this {product} in {month} and use it every day.",
    "Dear support, this is about the {product} that came with order {order}.",
    "Hi there, my {product} is giving me trouble since {month}.",
    "Good morning, I am writing for the second time about order {order}.",
    "To whom it may concern: the {product} was a present for my father in {month}.",
)
STORY = (
    "The switch has to be pressed three times before anything happens.",
    "It makes a humming noise that the whole family hears through two doors.",
    "The manual shows a different model, with the buttons on the other side.",
    "After about ten minutes it turns itself off and has to cool down.",
    "The parcel was wet when it came, and one corner of the box was torn.",
    "I tried another socket, another cable and another room, with the same result.",
    "The display shows a letter that your manual does not explain.",
    "My daughter says that it smells of plastic when it is warm.",
    "The colour is darker than in the picture, which I could live with.",
    "Your colleague on the telephone was friendly and could not find my order.",
    "I have photographs of the crack and can send them if that helps.",
    "The lid does not close since the first week, so that dust gets in.",
    "It worked well for some days, then less and less, and now hardly at all.",
    "The shop around the corner says that it is a known fault of this series.",
    "I took it apart as far as the screws allowed and saw nothing burnt.",
    "The plug gets warm, which worries me more than anything else.",
)
CLOSINGS = (
    "I look forward to your answer.",
    "Best regards from the coast.",
    "You can call me in the evening.",
    "Thank you for your time.",
    "With kind regards, and sorry for the long letter.",
)
MONTHS = ("January", "March", "May", "July", "September", "November")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tickets:
    """Generated tickets.

    Attributes:
        text: all of them, one after the other.
        number: how many.
        truth: who asks for money back: product to count, and ``total``.
    """

    text: str
    number: int
    truth: dict[str, int]


def generate(number: int, seed: int) -> Tickets:
    """``number`` tickets of about 750 characters each."""
    chance = random.Random(seed)
    truth = dict.fromkeys((*PRODUCTS, "total"), 0)
    parts = []
    for at in range(number):
        product = chance.choice(PRODUCTS)
        kind = chance.random()
        point = chance.choice(ASKS) if kind < ASKERS else chance.choice(SPEAKS_OF_IT) if kind < ASKERS + DECOYS else ""
        if kind < ASKERS:
            truth[product] += 1
            truth["total"] += 1
        parts.append(f"=== Ticket {at + 100_000} | product: {product} | received: day {chance.randint(1, 365)} ===\n")
        parts.append(f"{_letter(chance, product, point)}\n\n")
    return Tickets(text="".join(parts), number=number, truth=truth)


def _letter(chance: random.Random, product: str, point: str) -> str:
    opening = chance.choice(OPENINGS).format(product=product, month=chance.choice(MONTHS), order=chance.randint(10_000, 99_999))
    story = chance.sample(STORY, chance.randint(7, 10))
    if point:
        story.insert(chance.randint(1, len(story)), point)
    return " ".join([opening, *story, chance.choice(CLOSINGS)])
