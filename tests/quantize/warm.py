"""Run commands in copies of an interpreter that has imported the slow packages once; started by conftest.Warm.

Reads one JSON object a line: {"argv": [...], "log": FILE, "env": {...}, "die": null or [N, FOLDER, SIGNAL]}, where argv
begins with a script's path or with `sparkwright`. For each it forks a child of its own session, and answers `started
PID`; when the child has ended, `ended PID STATUS`. A child is a real process: it can be measured, limited and killed.
What the imports print goes to stderr.
"""

import contextlib
import json
import os
import runpy
import select
import signal
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module
from typing import NoReturn


def main() -> None:
    """Import what the arguments name, say `ready`, then serve until stdin closes."""
    answers = os.dup(1)
    os.dup2(2, 1)
    for name in sys.argv[1:]:
        import_module(name)

    def say(line: str) -> None:
        os.write(answers, f"{line}\n".encode())

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
            for pid, status in ended():
                say(f"ended {pid} {status}")
        if 0 in ready:
            content = os.read(0, 65536)
            if not content:
                return
            *lines, pending = (pending + content).split(b"\n")
            for line in lines:
                say(f"started {start(json.loads(line))}")


def ended() -> Iterator[tuple[int, int]]:
    """Every child that has ended, with its status."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            yield pid, os.waitstatus_to_exitcode(status)


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
        if isinstance(job["die"], list):
            die_before(*job["die"])
        status = perform()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - whatever it is, the child ends here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def die_before(count: int, folder: str, number: int) -> None:
    """Get a signal right before the `count`-th time that something in a folder is renamed or removed."""
    left = count

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event not in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            return
        if any(os.fspath(one).startswith(folder) for one in arguments[:2] if isinstance(one, str | os.PathLike)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), number)

    sys.addaudithook(watch)


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
