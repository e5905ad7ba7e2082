"""The stack of one thread out of what `faulthandler` wrote about all of them. PURE."""

from __future__ import annotations

import re

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)[^\n]*\n((?:  [^\n]*\n)*)", re.MULTILINE)
_FRAME = re.compile(r'^  File ("[^\n]*"), line (\d+) in ([^\n]*)$', re.MULTILINE)


_OWN = 'taskq/workers/executor.py"'
"""Where the frames of taskq itself end, seen from outside."""


def stack_of(thread: int, text: str) -> str:
    """The last stack of this thread like a traceback, without the frames of taskq and without lines of source; empty if
    there is none.

    >>> text = 'Thread 0x0a (most recent call first):\\n  File "t.py", line 7 in f\\n  File "t.py", line 9 in task\\n'
    >>> print(stack_of(10, text))
    Stack of the thread (most recent call last):
      File "t.py", line 9, in task
      File "t.py", line 7, in f
    <BLANKLINE>
    """
    found = [body for ident, body in _THREAD.findall(text) if int(ident, 16) == thread]
    if not found:
        return ""
    frames = list(reversed(_FRAME.findall(found[-1])))
    own = [number for number, (file, _, _) in enumerate(frames) if file.endswith(_OWN)]
    inner = frames[own[-1] + 1 :] if own else frames
    lines = [f"  File {file}, line {line}, in {name}\n" for file, line, name in inner or frames]
    return "".join(["Stack of the thread (most recent call last):\n", *lines])
