"""A compiler launcher: runs the compiler and appends what the call cost to a file, one JSON object per line.

CMake calls it as `python -I -S measure.py LOG [ccache] COMPILER ARGUMENTS...`, so it must start fast and imports only
the standard library. The largest process counts as the call's peak memory. It ends as the compiler ended.
"""

import json
import os
import sys
import time


def main(arguments: list[str]) -> int:
    """Run `arguments[1:]` and append its cost to the file `arguments[0]`."""
    log, *command = arguments
    target = command[command.index("-o") + 1] if "-o" in command[:-1] else ""
    statistics = f"{os.path.abspath(target)}.ccache"  # noqa: PTH100  pathlib would double the start-up time
    started = time.monotonic()
    child = os.posix_spawnp(command[0], command, {**os.environ, "CCACHE_STATSLOG": statistics})
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    record = {
        "object": target,
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
        "wall_seconds": round(time.monotonic() - started, 3),
        "peak_mb": usage.ru_maxrss // 1024,
        "cache": _cache_result(statistics),
        "status": code,
    }
    # One write in append mode: calls that run side by side do not mix their lines.
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(handle, f"{json.dumps(record)}\n".encode())
    os.close(handle)
    return code if code >= 0 else 128 - code


def _cache_result(statistics: str) -> str:
    try:
        with open(statistics) as stream:  # noqa: PTH123
            counters = stream.read().split()
    except FileNotFoundError:
        return "off"
    os.unlink(statistics)  # noqa: PTH108
    if any(counter.endswith("_cache_hit") for counter in counters):
        return "hit"
    return "miss" if "cache_miss" in counters else "uncacheable"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
