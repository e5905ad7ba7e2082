"""When a worker process must end for the sake of a task in it, step by step; and the stack that it leaves."""

from __future__ import annotations

from math import inf

from taskq.workers.overtime import ASLEEP, GRACE, NOTICE, PATIENCE, Overtime
from taskq.workers.slots import Running
from taskq.workers.stacks import stack_of


def running(run: int, deadline: float = inf) -> Running:
    return Running(run, run, 0.0, "t", 7, deadline)


def test_nothing_is_done_before_a_deadline() -> None:
    overtime = Overtime()
    assert overtime.look([], 5.0) == (False, (), inf)
    assert overtime.look([running(1), running(2, 9.0), running(3, 8.0)], 5.0) == (False, (), 8.0)


def test_a_process_is_left_alone_then_leaves_then_is_killed() -> None:
    overtime, stuck = Overtime(), [running(1, 10.0)]
    assert overtime.look(stuck, 10.0) == (False, (), 10.0 + PATIENCE)
    assert overtime.look(stuck, 10.0 + PATIENCE) == (True, (), 10.0 + GRACE)
    verdict = overtime.look(stuck, 10.0 + GRACE)
    assert verdict.leave and verdict.kill == stuck


def test_each_look_at_the_time_it_names_goes_one_step_further() -> None:
    for number in range(1_000):  # times that no float sum gives back exactly
        overtime, stuck = Overtime(), [running(1, 2045.05 + number / 7)]
        leave = overtime.look(stuck, 2045.05 + number / 7)
        kill = overtime.look(stuck, leave.next)
        end = overtime.look(stuck, kill.next)
        assert (leave.leave, kill.leave, bool(kill.kill), end.kill) == (False, True, False, stuck)


def test_a_task_that_ended_in_time_is_forgotten() -> None:
    overtime = Overtime()
    overtime.look([running(1, 10.0)], 10.5)
    assert overtime.look([running(2, 30.0)], 15.5) == (False, (), 30.0)
    assert not overtime.look([running(2, 30.0)], 30.0).leave


def test_the_kill_is_for_all_that_are_over_and_for_no_others() -> None:
    overtime = Overtime()
    tasks = [running(1, 10.0), running(2, 14.0), running(3, 99.0), running(4)]
    overtime.look(tasks, 10.0)
    overtime.look(tasks, 13.0)
    assert [one.run for one in overtime.look(tasks, 15.0).kill] == [1, 2]


def test_a_parent_that_was_suspended_grants_the_whole_grace() -> None:
    overtime, now = Overtime(), 10.0 + ASLEEP + 60.0
    assert not overtime.look([running(1, 10.0)], now).kill
    assert not overtime.look([running(1, 10.0)], now + GRACE - 0.1).kill
    assert overtime.look([running(1, 10.0)], now + GRACE).kill


def test_a_cancelled_run_counts_from_its_exception() -> None:
    overtime, task = Overtime(), [running(1, 1_000.0)]
    assert overtime.cancel([1, 2], 50.0) == [1, 2]
    assert overtime.cancel([1, 2, 3], 50.5) == [3], "the others were told"
    assert overtime.look(task, 50.5) == (False, (), 50.0 + NOTICE)
    assert not overtime.look(task, 50.0 + NOTICE).leave
    assert not overtime.look(task, 50.0 + NOTICE + GRACE - 0.1).kill
    assert overtime.look(task, 50.0 + NOTICE + GRACE).kill == task
    assert overtime.is_cancelled(1)
    overtime.cancel([], 60.0)
    assert overtime.look(task, 60.0) == (False, (), 1_000.0)


WRITTEN = """Thread 0x00aa (most recent call first):
  File "/app/old.py", line 1 in older

Thread 0x00aa [taskq-task-0] (most recent call first):
  File "/app/t.py", line 7 in hang
  File "/app/t.py", line 9 in task
  File "/lib/taskq/workers/executor.py", line 99 in _attempt
  File "/usr/lib/threading.py", line 1 in _bootstrap

Current thread 0x00bb (most recent call first):
  File "/app/other.py", line 3 in main
"""


def test_a_stack_is_that_of_the_users_code() -> None:
    assert stack_of(0xAA, WRITTEN) == (
        "Stack of the thread (most recent call last):\n"
        '  File "/app/t.py", line 9, in task\n'
        '  File "/app/t.py", line 7, in hang\n'
    )
    assert "other.py" in stack_of(0xBB, WRITTEN)
    assert stack_of(0xCC, WRITTEN) == ""
    assert stack_of(0xAA, "") == ""
