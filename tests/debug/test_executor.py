"""One task at a time: whatever its code does, a report comes out, and nothing of it stays behind."""

from __future__ import annotations

import contextvars
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import pytest

from taskq import logs
from taskq.clock import SystemClock
from taskq.errors import BadArguments, Permanent, Retry, Snooze, TaskCancelled, TaskTimeout
from taskq.registry import STOPPING, TaskType, current_task
from taskq.service import MAX_RESULT
from taskq.shapes import ACK, NACK, SNOOZE, Handout, Report
from taskq.wire.codec import decode, encode_arguments
from taskq.workers import executor as executor_module
from taskq.workers import failures
from taskq.workers.executor import Executor
from taskq.workers.failures import NO_RETRY
from taskq.workers.slots import SlotTable


class Bench:
    """An executor with its slot table; ``run(function, …)`` is one attempt at a task with that function."""

    def __init__(self) -> None:
        self.slots = SlotTable.create(1)
        self.progress: list[tuple[int, float, str]] = []
        self.types: dict[str, TaskType[..., Any]] = {}
        self.executor = Executor(self.types.get, self.slots, self.on_progress, SystemClock().monotonic)
        self.runs = 0

    def on_progress(self, handout: Handout, fraction: float, note: str) -> None:
        self.progress.append((handout.id, fraction, note))

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        timeout: float | None = None,
        payload: bytes | None = None,
        retry_on: tuple[type[Exception], ...] = (Exception,),
        **kwargs: Any,
    ) -> Report:
        self.types["t"] = TaskType(function, "t", retry_on=retry_on)
        return self.hand("t", encode_arguments(args, kwargs) if payload is None else payload, timeout)

    def hand(
        self, type: str, payload: bytes, timeout: float | None = None, rules: dict[str, Any] | None = None
    ) -> Report:
        self.runs += 1
        fields = (7, self.runs, type, payload, "mail", 2, timeout, "c-1", 1_700_000_000.0, rules)
        return self.executor.run(0, Handout(*fields))

    def by_rules(self, function: Callable[..., Any], retry: Retry | None = None, **rules: Any) -> Report:
        self.types["t"] = TaskType(function, "t", retry=retry)
        return self.hand("t", encode_arguments((), {}), rules=rules)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    assert made.slots.running() == [], "a slot is still busy"
    made.executor.close()
    made.slots.close()


def raising(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


# -- results


@pytest.mark.parametrize("value", [None, True, 3**500, 1.5, "é", b"\0", [1, [2]], {"a": None}])
def test_result_travels(bench: Bench, value: object) -> None:
    kind, id, run, result, run_s = bench.run(lambda x: x, value)
    assert (kind, id, run) == (ACK, 7, 1)
    assert decode(result) == value
    assert 0 <= run_s < 1


def test_datetime_and_keywords_arrive(bench: Bench) -> None:
    moment = datetime(2024, 2, 29, tzinfo=timezone.utc)
    assert decode(bench.run(lambda a, *, b: [b, a], moment, b=1)[3]) == [1, moment]


def test_result_that_cannot_be_sent_fails_for_good(bench: Bench) -> None:
    kind, _, _, error, delay, _ = bench.run(lambda: {"a": [object()]})
    assert (kind, delay, error[:2]) == (NACK, NO_RETRY, ("error", "NotEncodable"))
    assert 'result["a"][0]' in error[2]


def test_a_result_that_changes_while_it_is_encoded_is_a_failure(bench: Bench) -> None:
    shared = dict.fromkeys(map(str, range(300_000)), 0)
    over = threading.Event()

    def change() -> None:
        while not over.is_set():
            shared[f"more {len(shared)}"] = 0

    thread = threading.Thread(target=change)
    thread.start()
    try:
        kind, _, _, error, delay, _ = bench.run(lambda: shared)
    finally:
        over.set()
        thread.join()
    assert (kind, delay, error[:2]) == (NACK, None, ("error", "RuntimeError"))
    assert "changed" in error[2]


def test_result_over_the_limit_fails_for_good(bench: Bench) -> None:
    assert bench.run(lambda: b"x" * (MAX_RESULT - 10))[0] == ACK
    kind, _, _, error, delay, _ = bench.run(lambda: b"x" * MAX_RESULT)
    assert (kind, delay, error[:2]) == (NACK, NO_RETRY, ("error", "PayloadTooLarge"))


# -- failures


def test_an_exception_is_a_failure_with_its_traceback(bench: Bench) -> None:
    def broken() -> None:
        raise ValueError("no good")

    kind, id, run, error, delay, run_s = bench.run(broken)
    assert (kind, id, run, delay) == (NACK, 7, 1, None)
    assert error[:3] == ("error", "ValueError", "no good")
    assert "in broken" in error[3]
    assert "workers" not in error[3]
    assert error[3].endswith("ValueError: no good\n")
    assert run_s >= 0


@pytest.mark.parametrize(
    ("error", "delay"),
    [
        (Retry("later", delay=12), 12.0),
        (Retry("later"), None),
        (Retry(delay=-5), 0.0),
        (Retry(delay=float("inf")), failures.MAX_DELAY),
        (Retry(delay=float("nan")), 0.0),
        (Permanent("never"), NO_RETRY),
        (BadArguments("wrong"), NO_RETRY),
        (OSError("disk"), None),
        (SystemExit(3), NO_RETRY),
        (KeyboardInterrupt(), NO_RETRY),
        (GeneratorExit(), NO_RETRY),
    ],
)
def test_what_each_exception_means(bench: Bench, error: BaseException, delay: float | None) -> None:
    report = bench.run(raising(error))
    assert (report[0], report[3][0], report[3][1], report[4]) == (NACK, "error", type(error).__name__, delay)


def test_retry_on_names_what_may_be_tried_again(bench: Bench) -> None:
    assert bench.run(raising(ConnectionError()), retry_on=(OSError,))[4] is None
    assert bench.run(raising(ValueError()), retry_on=(OSError,))[4] == NO_RETRY
    assert bench.run(raising(Retry()), retry_on=(OSError,))[4] is None, "an explicit Retry counts always"


@pytest.mark.parametrize(
    ("rules", "again"),
    [
        ({}, False),
        ({"retry_on": ("ValueError",)}, False),
        ({"never_on": ()}, True),
        ({"never_on": ("KeyError",)}, True),
        ({"never_on": ("OSError",)}, False),
        ({"retry_on": ("OSError",), "never_on": ()}, True),
        ({"retry_on": ("builtins.OSError",), "never_on": ()}, True),
        ({"retry_on": ("other.OSError", "KeyError"), "never_on": ()}, False),
        ({"retry_on": (), "never_on": ()}, False),
    ],
)
def test_what_a_submit_says_of_errors_holds_instead_of_the_code(
    bench: Bench, rules: dict[str, Any], again: bool
) -> None:
    of_the_code = Retry(retry_on=(Exception,), never_on=(ConnectionError,))
    delay = bench.by_rules(raising(ConnectionResetError()), of_the_code, **rules)[4]
    assert delay is None if again else delay == NO_RETRY
    assert bench.by_rules(raising(Retry()), of_the_code, **rules)[4] is None, "an explicit Retry counts always"
    assert bench.by_rules(raising(Permanent()), of_the_code, **rules)[4] == NO_RETRY


def test_a_result_that_nobody_wants_is_dropped_where_it_arises(bench: Bench) -> None:
    assert decode(bench.by_rules(lambda: [1, 2], ignore_result=True)[3]) is None
    kind, *_ = bench.by_rules(lambda: object(), ignore_result=True)
    assert kind == ACK, "it need not even be encodable"


def test_snooze_is_no_failure(bench: Bench) -> None:
    assert bench.run(raising(Snooze(90))) == (SNOOZE, 7, 1, 90.0)


def test_unknown_type_fails_for_good(bench: Bench) -> None:
    kind, _, _, error, delay, _ = bench.hand("nobody's", encode_arguments((), {}))
    assert (kind, error[1], delay) == (NACK, "UnknownTaskType", NO_RETRY)
    assert "nobody's" in error[2]


@pytest.mark.parametrize(
    "payload", [encode_arguments((1, 2), {}), encode_arguments((), {"z": 1}), b"", b"\xc1", b"\x90"]
)
def test_arguments_that_do_not_fit_fail_for_good_and_nothing_runs(bench: Bench, payload: bytes) -> None:
    ran: list[int] = []
    kind, _, _, error, delay, _ = bench.run(lambda x: ran.append(x), payload=payload)
    assert (kind, error[0], delay, error[3], ran) == (NACK, "arguments", NO_RETRY, "", [])


def test_a_type_error_of_the_code_is_an_ordinary_failure(bench: Bench) -> None:
    report = bench.run(lambda x: x + "1", 1)
    assert (report[3][0], report[3][1], report[4]) == ("error", "TypeError", None)


class Nasty(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


def test_an_exception_that_cannot_be_shown_is_reported_all_the_same(bench: Bench) -> None:
    report = bench.run(raising(Nasty()))
    assert (report[0], report[3][1]) == (NACK, "Nasty")
    assert "cannot be shown" in report[3][2]


def test_long_tracebacks_and_messages_are_cut_and_keep_their_end(bench: Bench) -> None:
    def deep(n: int) -> None:
        if n == 0:
            raise ValueError("x" * 100_000 + "\ud800")
        deep(n - 1)

    error = bench.run(deep, 300)[3]
    assert len(error[2]) <= failures.MAX_MESSAGE
    assert len(error[3]) <= failures.MAX_TRACEBACK
    assert error[3].startswith("Traceback")
    assert error[3].endswith("xxx\\ud800\n")
    "".join(error).encode()  # no surrogate is left


def test_endless_recursion_is_a_failure_like_any_other(bench: Bench) -> None:
    def endless() -> None:
        endless()

    report = bench.run(endless)
    assert (report[3][1], report[4]) == ("RecursionError", None)
    assert bench.run(lambda: 1)[0] == ACK


# -- timeouts


def spin(seconds: float) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return "done"


def test_a_task_over_its_timeout_is_interrupted(bench: Bench) -> None:
    begin = time.monotonic()
    kind, _, _, error, delay, _ = bench.run(spin, 30, timeout=0.05)
    assert time.monotonic() - begin < 5
    assert (kind, delay, error[:2]) == (NACK, None, ("timeout", "TaskTimeout"))
    assert error[2] == "ran longer than its timeout of 0.05 s"
    assert "in spin" in error[3]


def test_a_task_within_its_timeout_is_left_alone(bench: Bench) -> None:
    assert bench.run(spin, 0.01, timeout=30)[0] == ACK


def test_code_may_clean_up_after_a_timeout(bench: Bench) -> None:
    cleaned: list[str] = []

    def careful() -> None:
        try:
            spin(30)
        finally:
            cleaned.append("yes")

    assert bench.run(careful, timeout=0.02)[3][0] == "timeout"
    assert cleaned == ["yes"]


def test_a_timeout_raised_by_the_code_itself_keeps_its_words(bench: Bench) -> None:
    error = bench.run(raising(TaskTimeout("my own clock")))[3]
    assert error[:3] == ("timeout", "TaskTimeout", "my own clock")


# -- cancelling


@contextmanager
def cancelled_when_set(bench: Bench) -> Iterator[threading.Event]:
    """The next run is cancelled as soon as its code sets this."""
    begun = threading.Event()

    def cancel() -> None:
        begun.wait(10)
        bench.executor.cancel(bench.runs)

    thread = threading.Thread(target=cancel)
    thread.start()
    yield begun
    thread.join()


def test_a_task_sees_that_it_is_cancelled_before_it_is_interrupted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "NOTICE", 0.1)

    def patient(begun: threading.Event) -> float:
        begun.set()
        while not current_task().cancelled:
            time.sleep(0.001)
        begin = time.monotonic()
        try:
            spin(30)
        except TaskCancelled:
            return time.monotonic() - begin
        return 0.0

    with cancelled_when_set(bench) as begun:
        report = bench.run(lambda: patient(begun))
    assert report[0] == ACK and 0.08 < decode(report[3]) < 2
    assert not STOPPING


def test_a_task_that_is_interrupted_is_reported_as_cancelled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "NOTICE", 0.01)
    with cancelled_when_set(bench) as begun:
        kind, _, _, error, _, _ = bench.run(lambda: begun.set() or spin(30), timeout=60)  # type: ignore[func-returns-value]
    assert (kind, error[:3]) == (NACK, ("cancelled", "TaskCancelled", "it was cancelled"))
    assert "in spin" in error[3]
    assert bench.run(lambda: 1)[0] == ACK


def test_whatever_a_task_raises_after_it_was_asked_to_stop_it_is_cancelled(bench: Bench) -> None:
    def own(begun: threading.Event) -> None:
        begun.set()
        while not current_task().cancelled:
            time.sleep(0.001)
        raise ValueError("my own way to stop")

    with cancelled_when_set(bench) as begun:
        error = bench.run(lambda: own(begun))[3]
    assert error[:3] == ("cancelled", "ValueError", "my own way to stop")


def test_a_task_that_was_cancelled_before_it_began_never_does(bench: Bench) -> None:
    ran: list[int] = []
    bench.executor.cancel(1)
    assert bench.run(lambda: ran.append(1))[3][0] == "cancelled"
    assert not ran and not STOPPING
    assert bench.run(lambda: 1)[0] == ACK


def test_a_cancelled_task_of_another_is_an_ordinary_error(bench: Bench) -> None:
    assert bench.run(raising(TaskCancelled("task 8 was cancelled")))[3][:3] == (
        *("error", "TaskCancelled", "task 8 was cancelled"),
    )


@pytest.fixture
def switching_as_in_a_worker() -> Iterator[None]:
    """Threads give way to each other as often as in a worker process; with Python's 5 ms short tasks are never late."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    yield
    sys.setswitchinterval(before)


def test_a_late_timeout_never_hits_the_next_task(bench: Bench, switching_as_in_a_worker: None) -> None:
    """Tasks that end just about when their timeout comes, many times; each must be done or timed out itself."""
    outcomes = set()
    for turn in range(250):
        seconds = 0.0004 + turn % 9 * 0.0001
        report = bench.run(spin, 0.0012, timeout=seconds)
        outcomes.add(report[0] if report[0] == ACK else report[3][0])
        assert bench.run(lambda: sum(range(200)))[0] == ACK
    assert outcomes == {ACK, "timeout"}


def test_timeouts_of_several_threads_do_not_mix() -> None:
    bench = Bench()
    bench.types["t"] = TaskType(spin, "t")
    slots = SlotTable.create(4)
    executor = Executor(bench.types.get, slots, bench.on_progress, SystemClock().monotonic)
    found: dict[int, Report] = {}

    def run(slot: int, seconds: float, timeout: float) -> None:
        payload = encode_arguments((seconds,), {})
        found[slot] = executor.run(slot, Handout(slot, slot + 1, "t", payload, "q", 1, timeout, "", 0.0))

    plans = [(0, 20, 0.2), (1, 0.05, 20), (2, 20, 0.05), (3, 0.01, 0.9)]
    threads = [threading.Thread(target=run, args=plan) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [found[slot][0] for slot in range(4)] == [NACK, ACK, NACK, ACK]
    for one in (executor, bench.executor, slots, bench.slots):
        one.close()


# -- what the task sees


def test_the_task_knows_itself_and_says_how_far_it_is(bench: Bench) -> None:
    def task() -> list[Any]:
        me = current_task()
        me.progress(0.5, "half way")
        me.progress(7, "\ud800")
        return [me.id, me.run, me.attempt, me.type, me.queue, me.correlation_id]

    assert decode(bench.run(task)[3]) == [7, 1, 2, "t", "mail", "c-1"]
    assert bench.progress == [(7, 0.5, "half way"), (7, 1.0, "\\ud800")]
    assert current_task().id == 0, "the context ended with the attempt"


def test_context_of_one_task_does_not_leak_into_the_next(bench: Bench) -> None:
    mark: contextvars.ContextVar[int] = contextvars.ContextVar("mark", default=0)

    def set_mark() -> None:
        mark.set(1)

    bench.run(set_mark)
    assert decode(bench.run(lambda: mark.get())[3]) == 0


def test_lines_of_the_users_own_carry_the_task(bench: Bench) -> None:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Keep()
    handler.setFormatter(logs.JsonFormatter({}))
    logger = logging.getLogger("users.own")
    logger.addHandler(handler)
    try:
        bench.run(lambda: logger.warning("here"))
    finally:
        logger.removeHandler(handler)
    line = json.loads(lines[0])
    assert (line["task_id"], line["task_type"], line["attempt"], line["correlation_id"]) == (7, "t", 2, "c-1")


def test_the_slot_is_busy_while_the_task_runs(bench: Bench) -> None:
    seen: list[Any] = []
    bench.run(lambda: seen.extend(bench.slots.running()))
    assert [(one.id, one.run, one.type) for one in seen] == [(7, 1, "t")]


def test_the_slot_is_free_after_every_kind_of_end(bench: Bench) -> None:
    for function in (lambda: 1, raising(ValueError()), raising(SystemExit()), raising(Snooze(1))):
        bench.run(function)
        assert bench.slots.running() == []
