"""The shape of speed: for each workload of ``taskq bench`` a ratio within one run that fails if it takes twice as long.

Those of commands and starts, P12 and P13, are in `test_startup`.

Absolute figures say more about the machine, and what else it does, than about the code. So each is held against what
is measured beside it: the least that a queue has to do (`yardstick`), a bare round trip, commit or insert, a plain
manager, or itself with less to do. A limit is about one and a half times what was measured on a quiet machine. On a
busy one, what stands beside a figure gets slower too: a test sees less there, and does not fail for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from yardstick import Echo, commits, hold, in_turn, least, round_trip

from taskq.bench import backlog, idle, latency, mixed, submitting, throughput
from taskq.bench.figures import Row, median, percentile
from taskq.bench.settings import Settings
from taskq.bench.stage import Stage
from taskq.bench.tasks import noop

pytestmark = pytest.mark.speed


def measured(workload: Callable[[Settings], list[Row]], scale: float = 0.02) -> dict[str, Row]:
    """The figures of one run, by name."""
    rows = workload(Settings(runs=1, scale=scale))
    assert all(row.values and row.workload.startswith("P") for row in rows)
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}


# -- P1, P2, P10: how many go through


@pytest.mark.parametrize(
    ("store", "limits"),
    [
        ("sqlite", {"manager": 3.3, "all processes": 6.2, "wall": 3.2}),
        ("memory:", {"manager": 2.4, "all processes": 5.0, "wall": 2.5}),
    ],
)
def test_a_small_task_costs_little_more_than_it_must(store: str, limits: dict[str, float]) -> None:
    """P1. The processor time of the manager, of it, its pool and the client, and wall time."""
    count = 40_000
    with Settings().stage(store=store) as stage:
        live = throughput.Live(stage, Settings())

        def measure() -> dict[str, float]:
            floor = least()
            before, began = stage.cpu_seconds(), time.process_time()
            wall = 1 / live.run(count)
            client = time.process_time() - began
            used = {role: (after - before[role]) / count for role, after in stage.cpu_seconds().items()}
            everybody = sum(used.values()) + client / count
            return {
                "manager": used["manager"] * 1e6 / floor.cpu,
                "all processes": everybody * 1e6 / floor.cpu,
                "wall": wall * 1e6 / floor.wall,
            }

        hold(measure, limits)


def test_a_backlog_is_drained_as_fast_as_it_can_be() -> None:
    """P2."""

    def measure() -> dict[str, float]:
        rate = measured(throughput.drain, 0.25)["drain of a backlog, sqlite"].median
        return {"wall": 1e6 / rate / least().wall}

    hold(measure, {"wall": 1.8})


def test_who_waits_elsewhere_takes_nothing_from_the_others() -> None:
    """P10. How many times longer tasks take beside 500 more workers."""
    hold(
        lambda: {"times": 1 / measured(throughput.beside_many, 0.3)["of the rate without them"].median},
        {"times": 1.4},
    )


# -- P3, P8: how fast they are accepted


def test_a_task_is_accepted_soon_after_its_bytes_are_on_disk() -> None:
    """P3. One call a task: a round trip and a commit; in a pipeline: what a task costs at least."""

    def measure() -> dict[str, float]:
        before = commits(200)
        found = [row.median for row in submitting.submit(Settings(runs=1, scale=0.2))]
        must = round_trip() + percentile(before + commits(200), 50)
        one, many, pipeline = found
        return {
            "one client": 1 / one / must,
            "sixteen clients": 1 / many / must,
            "pipeline": 1e6 / pipeline / least().wall,
        }

    hold(measure, {"one client": 3.5, "sixteen clients": 1.6, "pipeline": 1.5})


def test_large_payloads_cost_little_more_than_their_bytes() -> None:
    """P8. On disk: a bare insert of them. In memory, until a worker had them: that they go somewhere and back."""

    def measure() -> dict[str, float]:
        found = measured(submitting.payloads, 0.3)
        times = {}
        for name, size, _, _ in submitting.SIZES:
            durable, live = found[f"submit {name}, sqlite"], found[f"live {name}, memory"]
            assert durable.limit is not None
            times[f"{name} on disk"] = durable.limit / 0.6 / durable.median
            times[f"{name} in memory"] = 1 / live.median / round_trip(size, 200)
        return times

    hold(measure, {"10 KiB on disk": 3.4, "1 MiB on disk": 2.8, "10 KiB in memory": 2.1, "1 MiB in memory": 12.0})


# -- P4, P6, P7: how long one waits


def test_an_idle_queue_answers_at_once() -> None:
    """P4. Four round trips are needed and, on disk, two commits."""
    settings = Settings()
    with settings.stage() as disk, settings.stage(store="memory:") as memory, Echo() as far:
        clients = disk.client(), memory.client()

        def measure() -> dict[str, float]:
            found = in_turn(
                5,
                disk=lambda: latency.results(clients[0], 200),
                commits=lambda: commits(80),
                memory=lambda: latency.results(clients[1], 200),
                trips=lambda: far.trips(80),
            )
            half = {name: median([median(times) for times in turns]) for name, turns in found.items()}
            slow = {name: min(percentile(times, 99) for times in turns) for name, turns in found.items()}
            return {
                "on disk": half["disk"] / (4 * half["trips"] + 2 * half["commits"]),
                "in memory": half["memory"] / (4 * half["trips"]),
                "on disk, p99": slow["disk"] / (half["disk"] + 2 * (slow["commits"] - half["commits"])),
                "in memory, p99": slow["memory"] / half["memory"],
            }

        hold(measure, {"on disk": 3.3, "in memory": 4.0, "on disk, p99": 2.0, "in memory, p99": 2.4})


def test_short_tasks_do_not_wait_behind_long_ones() -> None:
    """P6. A long one takes 200 ms, and hardly ever are all four slots taken by them."""

    def measure() -> dict[str, float]:
        with Echo() as far:
            at_least = 2 * percentile(far.trips(500), 90) + percentile(commits(300), 90)
        return {name: row.median / 1e3 / at_least for name, row in measured(mixed.mixed).items()}

    names = ("long ones of another type", "all of one type")
    hold(measure, {f"waiting, {name}, p99": 9.0 for name in names})


def test_small_calls_do_not_wait_for_a_drain() -> None:
    """P7. They wait for batches of tasks that are under way."""

    def measure() -> dict[str, float]:
        batch = 1_000 * least().wall / 1e3
        return {name: row.median / batch for name, row in measured(latency.beside_a_drain, 0.2).items()}

    hold(measure, {"stats beside a drain, p99": 1.6, "one submit beside a drain, p99": 3.5})


# -- P5, P9, P11: what it costs


def test_slots_are_as_busy_as_with_a_plain_manager() -> None:
    """P5."""

    def measure() -> dict[str, float]:
        rows = mixed.efficiency(Settings(runs=1, scale=0.2))
        pairs = zip(rows[::2], rows[1::2], strict=True)
        return {reached.name: plain.median / reached.median for reached, plain in pairs}

    hold(measure, {load.name: 1.4 for load in mixed.LOADS})


def test_a_task_costs_the_same_on_top_of_many() -> None:
    """P9."""

    def measure() -> dict[str, float]:
        floor = least()
        found = measured(backlog.backlog, 0.1)
        return {
            "a submit": found["100 pending, manager, a submit"].median / floor.cpu,
            "a drained task": found["100 pending, manager, a drained task"].median / floor.cpu,
            "growth": found["CPU a task, largest to smallest"].median,
            "memory": found["100,000 pending, memory beyond 40 MiB"].median / backlog.BYTES_PER_TASK,
            "restart": found["restart, per million tasks"].median / floor.wall,
        }

    hold(measure, {"a submit": 1.3, "a drained task": 1.6, "growth": 1.5, "memory": 1.0, "restart": 1.1})


def test_an_idle_queue_rests() -> None:
    """P11. Processor time: in so many tasks' worth a second."""

    def measure() -> dict[str, float]:
        found = measured(idle.footprint, 0.2)
        rests = {
            "memory": found["idle, memory in sum"].median / idle.MEMORY,
            "CPU": found["idle, CPU in sum"].median * 1e4 / least().cpu,
        }
        busiest = {role: found.get(f"{role}, busiest thread") for role in ("manager", "parent", "worker")}
        return rests | {role: row.median if row else 0.0 for role, row in busiest.items()}  # not on every system

    hold(measure, {"memory": 1.3, "CPU": 450.0, "manager": 1.6, "parent": 1.6, "worker": 1.6})


# -- P14: what is left


def test_a_file_shrinks_when_its_tasks_are_purged_and_nobody_waits_for_it() -> None:
    """P14. Held against the bars themselves. A file that is not given back is twice as large as it may be; commits that
    never have their turn while there is something to delete wait for all of it.
    """

    def measure() -> dict[str, float]:
        rows = measured(backlog.purged, 0.2).values()
        return {row.name: row.median / row.limit for row in rows if row.limit is not None}

    pauses = {f"worst pause while {name}": 0.7 for name in ("draining", "purging", "the file shrinks")}
    hold(measure, {"file after the purge": 1.2, **pauses})


def test_old_records_go_as_fast_as_tasks_are_completed() -> None:
    """At full speed, with records that are kept for a second: soon after the last task there are none."""
    with Stage(options=("--keep-completed", "1s")) as stage:
        client, queue = stage.client(), stage.service()
        for _ in range(6):
            client.map(noop, range(20_000))
        stage.until_completed(queue, 120_000)
        stage.wait_until(lambda: not queue.snapshot()["kept"].get("completed"), 15.0, "the records to go")
