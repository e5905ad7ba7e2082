"""What may come in from a peer: submitted items, reports, workers. PURE.

Whatever passes here can be stored and reckoned with; whatever does not is refused before anything changes. A peer is
authenticated, so this guards against mistakes (another version, a faulty client), not against malice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from taskq.errors import BadArguments, PayloadTooLarge
from taskq.queue.retry import MAX_FACTOR
from taskq.queue.terms import NewTask, Terms, as_new_task
from taskq.service import FAIR, MAX_BATCH, MAX_RESULT, STRICT
from taskq.shapes import ACK, GIVE_BACK, NACK, PROGRESS, SNOOZE, Evidence, Report, WorkerInfo

MAX_NAME = 200
"""Characters: longest name of a type or queue."""
MAX_KEY = 500
MAX_PRIORITY = 1_000
MAX_RETRIES = 1_000_000
MAX_DELAY = 10 * 366 * 86400.0
"""Seconds: furthest that a task can be put off, backoff and timeout included."""
MAX_ERRORS = 50
"""Most names in ``retry_on`` or ``never_on``."""
MAX_DATE = 253_402_300_799.0
"""Wall-clock seconds: the end of the year 9999."""
MAX_WITHIN = 7 * 86400.0
"""Seconds: longest window in which a submit is unique."""
UNIQUE_IN = ("pending", "scheduled", "running")
"""States in which a twin may count."""
UNIQUE_BYTES = 64
"""Longest value that stands for a unique submit."""
MAX_SHOWN = 200
"""Characters of a wrong value that a complaint repeats."""
MAX_THREADS = 10_000
MAX_EVIDENCE = 8 * 1024
"""Characters that are kept of what a worker process wrote before its death."""
MAX_SAMPLES = 100
MAX_NUMBER = 2**63 - 1
"""Largest number that a store can hold."""


def checked(items: Sequence[NewTask], max_payload: int) -> list[NewTask]:
    """The items of a submit call, with terms that they share: a million that wait are 200 MB less.

    Raises `BadArguments`, `PayloadTooLarge`; nothing is half accepted.
    """
    if not 0 < len(items) <= MAX_BATCH:
        raise BadArguments(f"a submit call takes 1 to {MAX_BATCH:,} tasks, not {len(items):,}")
    good: list[NewTask] = []
    given: object = None
    usual: Sequence[object] | None = None
    for position, item in enumerate(items):
        try:
            if item[0] is not given:
                given, usual = item[0], None
                terms = _accepted(*item[0])
            payload, own = item[1], item[2:]
            if own != usual:
                _check_own(terms, *own)
                usual = own
            if type(payload) is not bytes:
                raise ValueError("it has no payload")
        except (TypeError, ValueError, IndexError) as error:
            raise BadArguments(f"entry {position + 1}: {error}; nothing was accepted") from None
        if len(payload) > max_payload:
            raise PayloadTooLarge(
                f"entry {position + 1}: its arguments take {len(payload):,} bytes, {max_payload:,} are allowed",
                hint="keep large data in a file or database and submit its name, or raise --max-payload",
            )
        good.append(as_new_task((terms, *item[1:])))
    return good


@lru_cache(maxsize=4096, typed=True)
def _accepted(*fields: Any) -> Terms:
    """These terms, one object for all that are equal. Raises `ValueError`, `TypeError`."""
    terms = Terms.of(fields)
    if not (type(terms.type) is str and 0 < len(terms.type) <= MAX_NAME):
        raise ValueError("it has no type")
    if not (type(terms.queue) is str and 0 < len(terms.queue) <= MAX_NAME):
        raise ValueError(f"a queue's name has 1 to {MAX_NAME} characters")
    if type(terms.priority) is not int or abs(terms.priority) > MAX_PRIORITY:
        raise ValueError(f"priority is a number from -{MAX_PRIORITY:,} to {MAX_PRIORITY:,}")
    for name in ("timeout", "result_ttl"):
        if (limit := getattr(terms, name)) is not None:
            _check_seconds(name, limit)
            if limit == 0 and name != "timeout":
                raise ValueError(f"{name} is more than 0")
    _check_retry(terms)
    _check_time(terms)
    _check_unique(terms)
    if type(terms.ignore_result) is not bool:
        raise ValueError("ignore_result is true or false")
    return terms


def _check_retry(terms: Terms) -> None:
    if type(terms.max_retries) is not int or not 0 <= terms.max_retries <= MAX_RETRIES:
        raise ValueError(f"max_retries is a number from 0 to {MAX_RETRIES:,}")
    _check_seconds("backoff", terms.backoff)
    if type(terms.factor) not in (float, int) or not 1 <= terms.factor <= MAX_FACTOR:
        raise ValueError(f"factor is a number from 1 to {MAX_FACTOR:g}")
    _check_seconds("max_delay", terms.max_delay)
    if type(terms.jitter) is not bool:
        raise ValueError("jitter is true or false")
    for name in ("retry_on", "never_on"):
        names = getattr(terms, name)
        if names is not None and not are_error_names(names):
            raise ValueError(f"{name} is a list of at most {MAX_ERRORS} names of exception classes")


def shown(value: object) -> str:
    """A value as a complaint shows it: not at any length, and an integer with thousands of digits not at all."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no more than 4,300 of them
        return "one with too many digits"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def are_error_names(names: object) -> bool:
    """Whether this is a tuple of what may be names of exception classes, with or without their modules."""
    return (
        type(names) is tuple
        and len(names) <= MAX_ERRORS
        and all(type(name) is str and 0 < len(name) <= MAX_NAME for name in names)
    )


def _check_own(terms: Terms, delay: object, key: object, correlation_id: object, at: object, unique: object) -> None:
    _check_seconds("delay", delay)
    if at is not None:
        _check_date("at", at)
        if delay:
            raise ValueError("a task has a delay or a time to start at, not both")
    if terms.expires is not None and delay >= terms.expires:  # type: ignore[operator]  # it is a number
        raise ValueError("it would expire before it is due")
    if (unique is None) != (terms.unique_in is None):
        raise ValueError("a unique value goes with the terms that say what is a twin")
    if unique is not None and not (type(unique) is bytes and 0 < len(unique) <= UNIQUE_BYTES):
        raise ValueError(f"a unique value has 1 to {UNIQUE_BYTES} bytes")
    if unique is not None and key is not None:
        raise ValueError("a task has a key or is unique, not both")
    if key is not None and not (type(key) is str and 0 < len(key) <= MAX_KEY):
        raise ValueError(f"a key has 1 to {MAX_KEY} characters")
    if type(correlation_id) is not str or len(correlation_id) > MAX_NAME:
        raise ValueError(f"a correlation id has at most {MAX_NAME} characters")


def _check_seconds(name: str, value: object) -> None:
    if not _is_seconds(value):
        raise ValueError(f"{name} is a number of seconds from 0 to {MAX_DELAY:,.0f}")


def _check_date(name: str, value: object) -> None:
    if type(value) not in (float, int) or not 0 <= value <= MAX_DATE:  # type: ignore[operator]  # it is a number
        raise ValueError(f"{name} is a number of seconds since 1970, up to the year 9999")


def _check_time(terms: Terms) -> None:
    if terms.expires is not None:
        _check_seconds("expires", terms.expires)
        if terms.expires == 0:
            raise ValueError("a task expires after more than 0 seconds")
    if terms.expires_by is not None:
        _check_date("expires_by", terms.expires_by)


def _check_unique(terms: Terms) -> None:
    states = terms.unique_in
    if states is not None and not (type(states) is tuple and len(states) <= 3 and set(states) <= set(UNIQUE_IN)):
        raise ValueError(f"unique_in is a list of states: {', '.join(UNIQUE_IN)}")
    if type(terms.unique_within) not in (float, int) or not 0 <= terms.unique_within <= MAX_WITHIN:
        raise ValueError(f"unique_within is a number of seconds from 0 to {MAX_WITHIN:,.0f}")
    if type(terms.unique_raises) is not bool:
        raise ValueError("unique_raises is true or false")


def check_number(name: str, value: object) -> None:
    """Raise `BadArguments` unless this is a number that a store can hold."""
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise BadArguments(f"{name} is a number from 0 to 2^63 - 1")


def check_text(name: str, value: object) -> None:
    """Raise `BadArguments` unless this is a text of 1 to `MAX_NAME` characters."""
    if type(value) is not str or not 0 < len(value) <= MAX_NAME:
        raise BadArguments(f"{name} has 1 to {MAX_NAME} characters")


def check_seconds(name: str, value: float) -> float:
    """The same value. Raises `BadArguments` unless it is a number of seconds, 0 or more."""
    if type(value) not in (int, float) or not value >= 0:
        raise BadArguments(f"{name} is a number of seconds, 0 or more")
    return value


def check_reports(reports: Sequence[Report]) -> None:
    """Raise `BadArguments` at the first report that is not one of those in `taskq.shapes.Report`."""
    if _are_acks(reports):
        return
    for position, report in enumerate(reports):
        try:
            fits = type(report[1]) is int and type(report[2]) is int and _REPORTS[report[0]](*report[3:])
        except (TypeError, KeyError, IndexError):
            fits = False
        if not fits:
            raise BadArguments(f"report {position + 1} is not of a known form; nothing was taken")


def _are_acks(reports: Sequence[Report]) -> bool:
    """Whether these are acks and all fit, as nearly all do: many at once, which takes a third of one by one."""
    try:
        kinds, ids, runs, results, run_s = zip(*reports, strict=True)
        return (
            kinds.count(ACK) == len(kinds)
            and _types(ids) == _types(runs) == {int}
            and _types(results) == {bytes}
            and max(map(len, results)) <= MAX_RESULT
            and _types(run_s) <= {float, int}
            and min(run_s) >= 0
            and sum(run_s) <= MAX_DELAY  # also false if one of them is not a number
        )
    except (TypeError, ValueError, OverflowError):
        return False


def _types(values: Iterable[object]) -> set[type]:
    return set(map(type, values))


def _is_seconds(value: object) -> bool:
    return type(value) in (float, int) and 0 <= value <= MAX_DELAY  # type: ignore[operator]  # it is a number


def _fits_ack(result: object, run_s: object) -> bool:
    return type(result) is bytes and len(result) <= MAX_RESULT and _is_seconds(run_s)


def _fits_nack(error: Any, delay: object, run_s: object) -> bool:
    texts = len(error) == 4 and all(type(part) is str for part in error)
    return texts and (delay is None or delay == -1 or _is_seconds(delay)) and _is_seconds(run_s)


def _fits_progress(fraction: object, note: object) -> bool:
    return type(fraction) in (float, int) and 0 <= fraction <= 1 and type(note) is str  # type: ignore[operator]  # a number


_REPORTS: dict[int, Callable[..., bool]] = {
    ACK: _fits_ack,
    NACK: _fits_nack,
    GIVE_BACK: lambda: True,
    SNOOZE: _is_seconds,
    PROGRESS: _fits_progress,
}


def fitting_evidence(given: Evidence) -> Evidence:
    """The evidence of a death in the form and size in which it is kept. Raises `BadArguments`."""
    try:
        rss = [(round(float(before), 1), int(size)) for before, size in given.get("rss", ())]
    except (TypeError, ValueError, OverflowError):
        raise BadArguments("rss is pairs of seconds and bytes") from None
    if not all(map(_is_seconds, (before for before, _ in rss))):
        raise BadArguments(f"rss has seconds from 0 to {MAX_DELAY:,.0f}")
    stderr, crash = given.get("stderr", ""), given.get("crash", "")
    if type(stderr) is not str or type(crash) is not str:
        raise BadArguments("stderr and crash are texts")
    return Evidence(rss=rss[-MAX_SAMPLES:], stderr=stderr[-MAX_EVIDENCE:], crash=crash[:MAX_EVIDENCE])


def check_worker(worker: WorkerInfo, held: Sequence[tuple[int, int]]) -> None:
    """Raise `BadArguments` unless a worker process says who it is as `taskq.shapes.WorkerInfo` has it."""
    texts = (worker["incarnation"], worker["name"], worker["host"], worker["pool"]["id"], *worker["queues"])
    if not all(type(text) is str and 0 < len(text) <= MAX_NAME for text in texts):
        raise BadArguments(f"names of workers, hosts, pools and queues have 1 to {MAX_NAME} characters")
    order = worker.get("queue_order") or ""
    if order not in ("", FAIR) and not (order == STRICT and worker["queues"]):
        raise BadArguments(f'the order of queues is "{FAIR}", or "{STRICT}" where queues are named')
    check_number("pid", worker["pid"])
    if type(worker["threads"]) is not int or not 0 < worker["threads"] <= MAX_THREADS:
        raise BadArguments(f"threads is a number from 1 to {MAX_THREADS:,}")
    for number, run in held:
        check_number("task", number)
        check_number("run", run)
    for info in worker["types"]:
        if type(info["name"]) is not str or not 0 < len(info["name"]) <= MAX_NAME:
            raise BadArguments(f"names of types have 1 to {MAX_NAME} characters")
