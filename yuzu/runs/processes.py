"""The workers of one machine: this process, or several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import warnings
from dataclasses import replace
from typing import Any

from yuzu._engine.progress import hushed
from yuzu.errors import YuzuError, YuzuWarning, one_line
from yuzu.runs.call import Call
from yuzu.runs.progress import Progress
from yuzu.runs.store import Store
from yuzu.runs.worker import Task, work


def run(task: Task, call: Call, workers: int, devices: list[str] | None, quiet: bool) -> None:
    """Do a task with some workers; devices are dealt out in turn.

    Raises
    ------
    YuzuError
        The first error of a worker, after the others have ended.
    """
    store = Store(task.path)
    if not set(task.blocks(store)) - set(store.done()):
        return
    with Progress(store, quiet) as progress:
        if workers == 1:
            if devices:
                call.settings["device"] = devices[0]
            work(task, call, progress)
            return
        _run_processes(task, workers, devices or [], progress)


def _run_processes(task: Task, workers: int, devices: list[str], progress: Progress) -> None:
    context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
    running: list[tuple[Any, Any]] = []
    try:
        for number in range(workers):
            ours, theirs = context.Pipe(duplex=False)  # a queue's lock would be kept by a worker that is killed
            device = devices[number % len(devices)] if devices else None
            arguments = (replace(task, parent=os.getpid()), device, theirs)
            process = context.Process(target=_work, args=arguments, name=f"yuzu worker {number}")
            process.start()
            theirs.close()
            running.append((process, ours))
        errors: dict[str, None] = {}
        while any(process.is_alive() for process, _ in running):
            time.sleep(0.1)
            progress()
        killed = 0
        for process, ours in running:
            process.join()
            if ours.poll():
                try:
                    errors[ours.recv()] = None
                except EOFError:
                    pass
            killed += (process.exitcode or 0) < 0
    finally:
        for process, _ in running:
            if process.is_alive():
                process.terminate()
    if errors:
        raise YuzuError("; ".join(errors))
    store = Store(task.path)
    if set(task.blocks(store)) - set(store.done()):
        raise YuzuError(
            f"{killed} of {workers} workers were killed, such as by the kernel for want of memory; what is done stays "
            "done: start the same job again"
        )
    if killed:
        print(f"yuzu ism: {killed} of {workers} workers were killed; the others did their work", file=sys.stderr)


def _work(task: Task, device: str | None, told: Any) -> None:
    """The body of a process: errors are sent, not printed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    warnings.simplefilter("ignore", YuzuWarning)  # the parent has said them
    try:
        with hushed():
            call = task.load()
            if device is not None:
                call.settings["device"] = device
            work(task, call)
    except Exception as error:
        told.send(str(error) if isinstance(error, YuzuError) else f"{type(error).__name__}: {one_line(error)}")
        sys.exit(1)
