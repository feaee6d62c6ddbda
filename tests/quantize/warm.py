"""Run commands in copies of an interpreter that has imported the slow packages once; started by conftest.Warm.

Reads one JSON object a line: {"argv": [...], "log": FILE, "env": {...}}, where argv begins with a script's path or with
`sparkwright`. For each it forks a child of its own session, and answers `started PID`; when the child has ended,
`ended PID STATUS`. A child is a real process: it can be measured, limited and killed.
"""

import json
import os
import runpy
import select
import signal
import sys
import traceback
from importlib import import_module
from typing import NoReturn


def main() -> None:
    """Import what the arguments name, say `ready`, then serve until stdin closes."""
    for name in sys.argv[1:]:
        import_module(name)
    say("ready")
    wake, signalled = os.pipe()
    os.set_blocking(signalled, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(signalled)
    pending = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            report_ended()
        if 0 in ready:
            content = os.read(0, 65536)
            if not content:
                return
            *lines, pending = (pending + content).split(b"\n")
            for line in lines:
                say(f"started {start(json.loads(line))}")


def say(line: str) -> None:
    """One line of answer."""
    os.write(1, f"{line}\n".encode())


def report_ended() -> None:
    """Collect every child that has ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        say(f"ended {pid} {os.waitstatus_to_exitcode(status)}")


def start(job: dict[str, object]) -> int:
    """Fork a child that does the job."""
    pid = os.fork()
    if pid == 0:
        become(job)
    return pid


def become(job: dict[str, object]) -> NoReturn:
    """Be the command from now on."""
    status = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(str(job["log"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if isinstance(job["env"], dict):
            os.environ.update(job["env"])
        if isinstance(job["argv"], list):
            sys.argv = job["argv"]
        status = perform()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - whatever it is, the child ends here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def perform() -> int:
    """Run the command that sys.argv holds."""
    if sys.argv[0] == "sparkwright":
        from sparkwright.cli import main as command

        command()
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    main()
