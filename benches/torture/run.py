"""One run: a life with a fault, and then what a fresh app, a second one and Chroma itself find."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app import KEY, App, database_of, new_manager, read, stock_client, value_of, write
from child import DiedError, HangError, end_processes_in, in_child
from lives import LIVES, Life, copy_tree
from model import Model, World, faults_in
from plan import FAULTS, Operation, Plan

SECONDS = 60.0
LINGER_SECONDS = 10.0

# Of one fault that passes, calls after the one that had it know nothing; a batch of two calls may.
MOST_ERRORS = 2


@dataclass(frozen=True)
class State:
    """What replays a run."""

    life: str
    fault: str | None = None
    at: int = 0
    again: int = 0
    seed: int = 0

    def arguments(self) -> str:
        """As on the command line."""
        again = f" --again {self.again}" if self.again else ""
        return f"--life {self.life} --fault {self.fault} --at {self.at}{again} --seed {self.seed}"


@dataclass
class Result:
    """What came of it.

    Attributes:
        operations: All that were counted; only of a run without a fault.
        hit: What had the fault first, as text.
        acts: What was done.
        errors: What calls of the app raised, with the number of the act.
        fired: How many operations had the fault.
        failures: What cannot be, in sentences.
    """

    state: State
    operations: list[Operation] = field(default_factory=list)
    hit: str = ""
    acts: list[str] = field(default_factory=list)
    errors: list[tuple[int, str]] = field(default_factory=list)
    fired: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Bench:
    """Where runs are made.

    Attributes:
        scratch: A directory of this bench's own.
        library: What is preloaded.
        whole_batches: Whether a batch is to be written as a whole or not at all.
        keep: Whether the directories of runs that failed are kept.
        checks_counting: Whether runs without a fault, which count operations, are checked as others are.
    """

    def __init__(
        self, scratch: Path, library: Path, *, whole_batches: bool, keep: bool = False, checks_counting: bool = True
    ) -> None:
        """Makes nothing yet."""
        self.scratch, self.library, self.whole_batches = scratch, library, whole_batches
        self.keep, self.checks_counting = keep, checks_counting

    def prepare(self, life: Life, seed: int) -> None:
        """Makes what was there before a life."""
        root = self._template(life, seed)
        root.mkdir(parents=True)

        def work() -> bytes:
            app = App(root, Model(), seed)
            if life.prepare is not None:
                life.prepare(app)
            assert not app.errors, app.errors
            return pickle.dumps(app.model)

        with _environment(root.parent):
            model = in_child(work, SECONDS, root.parent)
        end_processes_in(root.parent, LINGER_SECONDS)
        if life.damage is not None:
            life.damage(database_of(root))
        (root.parent / "model").write_bytes(model)

    def _template(self, life: Life, seed: int) -> Path:
        return self.scratch / f"{life.name}-{seed}" / "root"

    def run(self, state: State) -> Result:
        """Makes a run, in a directory of its own."""
        began = time.monotonic()
        life, result = LIVES[state.life], Result(state)
        template = self._template(life, state.seed)
        # A short name: there are sockets in it.
        home = Path(tempfile.mkdtemp(prefix="", dir=self.scratch))
        root = home / "root"
        copy_tree(template, root)
        model = pickle.loads((template.parent / "model").read_bytes())
        plan = Plan(home / "plan", root)
        plan.set_rules(_rules(state))
        try:
            self._play_and_check(life, model, plan, result)
        except HangError as hang:
            result.failures.append(f"hangs for {SECONDS:.0f} s\n{hang}")
        except DiedError as died:
            result.failures.append(str(died))
        self._note(plan, state, result)
        plan.activate(False)
        left = end_processes_in(home, 0.0 if result.failures else LINGER_SECONDS)
        if left and not result.failures:
            result.failures.append(f"engine processes are left: {left}")
        if self.keep and result.failures:
            result.failures.append(f"kept in {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)
        result.seconds = time.monotonic() - began
        return result

    def _note(self, plan: Plan, state: State, result: Result) -> None:
        trace = plan.trace()
        result.fired = plan.fired
        if state.fault is None:
            result.operations = trace
        else:
            hits = [operation for operation in trace if operation.action]
            result.hit = "; ".join(f"{hit} in {_act(result, hit.act)}" for hit in hits[:2])

    def _play_and_check(self, life: Life, model: Model, plan: Plan, result: Result) -> None:
        state, home = result.state, plan.path.parent
        root = home / "root"

        def play() -> tuple[Model, list[str], list[tuple[int, str]], list[str]]:
            app = App(root, model, state.seed, plan)
            plan.activate(True)
            life.play(app)
            app.manager.shutdown()
            return app.model, app.acts, app.errors, app.faults

        with _environment(home, plan.environment(self.library)):
            model, result.acts, result.errors, faults = in_child(play, SECONDS, home)
        result.failures += [f"the app itself: {fault}" for fault in faults]
        plan.activate(False)
        if state.fault is None or FAULTS[state.fault].lasts == 1:
            allowed = 0 if state.fault is None else MOST_ERRORS * (2 if state.again else 1)
            if len(result.errors) > allowed:
                said = "\n  ".join(text for _, text in result.errors)
                result.failures.append(f"{len(result.errors)} calls failed:\n  {said}")
        if state.fault is None and not self.checks_counting:
            return
        with _environment(home):
            result.failures += in_child(lambda: self._check(life, state, model, root), SECONDS, home)

    def _check(self, life: Life, state: State, model: Model, root: Path) -> list[str]:
        """What is wrong with what the life has left, said by three that open it one after the other."""
        manager = new_manager(root)
        if life.first_aid is not None:
            life.first_aid(manager)
        client = manager.get_client(*KEY)
        found = read(client)
        failures = self._said("a fresh app", model.worlds, found)
        for name in found:
            # The next write works.
            value = value_of(state.seed, name, "next", 0)
            write(client.get_collection(name, embedding_function=None), "upsert", {"next": value})
            _note_next(model, name, value)
        manager.shutdown()
        manager = new_manager(root)
        failures += self._said("reopened", model.worlds, read(manager.get_client(*KEY)))
        if failures or state.at % 10 == 0:
            report = manager.verify(*KEY)
            if not report.ok or failures:
                failures.append(f"verify says ok={report.ok} {'; '.join(report.problems)}")
        manager.shutdown()
        failures += self._said_by_chroma("Chroma itself", model.worlds, database_of(root))
        for name, (worlds, is_certain) in model.snapshots.items():
            if (root / name).exists() or is_certain:
                copy_tree(root / name, root / "copy")
                failures += self._said_by_chroma("the snapshot", worlds, root / "copy")
        return failures

    def _said_by_chroma(self, who: str, worlds: list[World], path: Path) -> list[str]:
        with stock_client(path) as client:
            return self._said(who, worlds, read(client))

    def _said(self, who: str, worlds: list[World], found: Any) -> list[str]:
        return [f"{who}: {fault}" for fault in faults_in(worlds, found, whole_batches=self.whole_batches)]


def _note_next(model: Model, name: str, value: Any) -> None:
    for world in model.worlds:
        for collection in world.collections.values():
            if name in collection.names:
                collection.records["next"] = {value}


def _rules(state: State) -> list[tuple[int, int, int, int]]:
    if state.fault is None:
        return []
    fault = FAULTS[state.fault]
    rules = [(state.at, fault.lasts, fault.action, fault.applies_to)]
    if state.again:
        rules.append((state.at + state.again, 1, fault.action, fault.applies_to))
    return rules


def _act(result: Result, act: int) -> str:
    return result.acts[act] if act < len(result.acts) else f"act {act}"


@contextlib.contextmanager
def _environment(home: Path, more: Mapping[str, str] | None = None) -> Iterator[None]:
    """What processes are started with."""
    runtime = home / "run"
    runtime.mkdir(exist_ok=True)
    before = dict(os.environ)
    os.environ.update({"XDG_RUNTIME_DIR": str(runtime), **(more or {})})
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
