"""A task that runs until a file is there, as a test has it: the start of a module with tasks."""

WAITING_TASK = """\
import time
from taskq import current_task, task

@task(name="wait_for_file")
def wait_for_file(path: str) -> int:
    while True:
        try:
            open(path).close()
            return current_task().attempt
        except FileNotFoundError:
            time.sleep(0.01)

"""
