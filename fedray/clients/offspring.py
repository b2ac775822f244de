"""Processes that client code starts end with their actor, however it ends, and do not hide its end.

A forked child holds its parent's open sockets, so while it lives Ray does not see that the actor is gone; and nobody ends it. So children
are bound to their parent by the kernel, and a guardian outside, which waits for the actor's end on a pipe, ends whatever is left of its
process group. Linux only; elsewhere nothing is done. Who leaves the process group by starting a session of its own, without Python's fork,
escapes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1
#: Waits until the pipe on its standard input closes, then ends the process group. In the background and an orphan, so that it is no child
#: of the actor which Ray would end first.
_GUARDIAN = 'exec 3<&0; { read -r _ <&3; kill -s KILL -- "-$0"; } >/dev/null 2>&1 &'

_parent = 0  # the process that the next fork starts from
_pipe: int | None = None  # a file descriptor, open until the process has ended: Python would close a file of its own before that


def contain() -> None:
    """Have everything that this process starts from now on end with it; for an actor's process, once, first."""
    global _parent, _pipe
    if _pipe is not None or sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)  # not in the child, where locks may be held by threads that are not there

    def bind() -> None:
        global _parent
        before, _parent = _parent, os.getpid()
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != before:  # it ended in between
            os._exit(1)

    _parent = os.getpid()
    os.register_at_fork(after_in_child=bind)
    try:
        if os.getpgrp() != os.getpid():
            os.setpgid(0, 0)
        guardian = subprocess.Popen(["/bin/sh", "-c", _GUARDIAN, str(os.getpid())], stdin=subprocess.PIPE, start_new_session=True)
    except OSError:  # no shell, or no right to a group: children of Python's own are bound all the same
        return
    guardian.wait()
    assert guardian.stdin is not None
    _pipe = os.dup(guardian.stdin.fileno())
    guardian.stdin.close()
