"""Which states are tried, and in which order: every place first, then every operation."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence

from plan import FAULTS, Fault, Operation
from run import State

# How soon it is tried, and what.
Ranked = tuple[int, State]

# How far into what follows the second kill may be.
LONGEST_AGAIN = 250


def states_of(life: str, operations: Sequence[Operation], faults: Iterable[str], seed: int) -> Iterator[list[Ranked]]:
    """For each fault the states of a life, the telling ones first.

    A place is what operations of one act have in common that do the same with the same file. Its first and its last
    operation come before those in between, which mostly leave what their neighbours leave.
    """
    for name in faults:
        chance = random.Random(f"{seed}/{life}/{name}")
        fitting = [operation for operation in operations if operation.kinds & FAULTS[name].applies_to]
        yield [
            (rank, State(life, name, operation.number, _again(FAULTS[name], chance), seed))
            for rank, operation in _in_order(fitting, chance)
        ]


def _again(fault: Fault, chance: random.Random) -> int:
    """After how many more operations it comes again; there are more short recoveries than long ones."""
    return round(LONGEST_AGAIN ** chance.random()) if fault.name == "kill-again" else 0


def _in_order(operations: list[Operation], chance: random.Random) -> list[tuple[int, Operation]]:
    first: dict[tuple[int, str, str], Operation] = {}
    last: dict[tuple[int, str, str], Operation] = {}
    for operation in operations:
        first.setdefault(operation.place, operation)
        last[operation.place] = operation
    ordered = list[tuple[int, Operation]]()
    taken = set[int]()
    for rank, group in enumerate((list(first.values()), list(last.values()), list(operations))):
        chance.shuffle(group)
        ordered += [(rank, operation) for operation in group if operation.number not in taken]
        taken |= {operation.number for operation in group}
    return ordered


def spread(groups: Iterable[list[Ranked]]) -> list[State]:
    """All states by rank; so that of each group about the same part is tried, whenever the time is over."""
    placed = []
    for group in groups:
        for rank, ranked in itertools.groupby(group, key=lambda entry: entry[0]):
            states = [state for _, state in ranked]
            placed += [(rank, i / len(states), state) for i, state in enumerate(states)]
    return [state for _, _, state in sorted(placed, key=lambda entry: entry[:2])]


def sample(groups: Iterable[list[Ranked]], lives: Sequence[str], faults: Sequence[str], count: int) -> list[State]:
    """So many states of each life, with other faults for each."""
    first = {(state.life, state.fault): state for group in groups for _, state in group[:1]}
    states = list[State]()
    for i, life in enumerate(lives):
        fitting = [first[life, fault] for fault in faults if (life, fault) in first]
        states += [fitting[(i * count + n) % len(fitting)] for n in range(min(count, len(fitting)))]
    return states


def at_random(lives: dict[str, list[Operation]], faults: Sequence[str], count: int, seed: int) -> list[State]:
    """Any states."""
    chance = random.Random(seed)
    states = list[State]()
    while len(states) < count:
        life, name = chance.choice(sorted(lives)), chance.choice(faults)
        fitting = [one for one in lives[life] if one.kinds & FAULTS[name].applies_to]
        if fitting:
            states.append(State(life, name, chance.choice(fitting).number, _again(FAULTS[name], chance), seed))
    return states
