"""Runs runners in processes forked from this one, which has the large packages imported: on a GPU that is lent by the
second most of a short run would be imports. For peers that share one interpreter (``benchmark.py --here``).

Reads a task a line from its input, ``{"script", "job", "output", "errors", "cores", "paths"}``, and prints the number
of the process that runs it and, when that has ended, its exit status. Nothing runs on a GPU here, nor is anything
imported whose import is timed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import sys
import traceback
from typing import Any

PACKAGES = ("torch", "scipy", "pandas", "tangermeme.saturation_mutagenesis", "bpnetlite")


def main() -> None:
    for name in PACKAGES:
        with contextlib.suppress(ImportError):  # a peer that needs it says so itself
            importlib.import_module(name)
    for line in sys.stdin:
        task = json.loads(line)
        process = os.fork()
        if not process:
            run(task)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def run(task: dict[str, Any]) -> None:
    """Become the runner; does not return."""
    status = 1
    try:
        os.sched_setaffinity(0, task["cores"])
        for name, descriptor in (("output", 1), ("errors", 2)):
            file = os.open(task[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, descriptor)
        sys.argv = [task["script"], task["job"]]
        sys.path[:0] = task["paths"]
        runpy.run_path(task["script"], run_name="__main__")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
