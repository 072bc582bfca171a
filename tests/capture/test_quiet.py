"""While a model is captured, what other threads print, log and warn of is heard; what capturing itself says is not."""

import io
import logging
import sys
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from yuzu._engine.capture.export import loggers_of_torch
from yuzu._engine.capture.quiet import quiet
from yuzu._engine.rewrite.all import capture


class Speaking(nn.Module):
    """Says something as it is traced, and lets another thread say something meanwhile."""

    def __init__(self, elsewhere: Any) -> None:
        super().__init__()
        self.conv, self.elsewhere = nn.Conv1d(4, 3, 3), [elsewhere]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        say("here")
        thread = threading.Thread(target=self.elsewhere[0])
        thread.start()
        thread.join()
        return self.conv(x)


def say(where: str) -> None:
    print(f"printed {where}", file=sys.stderr)
    sys.stderr.writelines([f"written {where}\n"])
    warnings.warn(f"warned {where}", stacklevel=1)
    logging.getLogger("torch.fx").error(f"logged {where}")


def test_other_threads_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, records = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(records)
    monkeypatch.setattr(sys, "stderr", stream)
    logging.getLogger("torch.fx").addHandler(handler)
    before = list(warnings.filters)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            capture(Speaking(lambda: say("elsewhere")).eval(), (4, 12), (), torch.float32)
            filters = list(warnings.filters)
    finally:
        logging.getLogger("torch.fx").removeHandler(handler)
    assert stream.getvalue().splitlines() == ["printed elsewhere", "written elsewhere"]
    assert records.getvalue().splitlines() == ["logged elsewhere"]
    assert [str(w.message) for w in warned] == ["warned elsewhere"]
    assert sys.stderr is stream and list(warnings.filters) == before and len(filters) == len(before) + 1
    assert not logging.getLogger("torch.fx").filters


def test_warnings_that_are_errors_do_not_end_a_capture() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture(Speaking(lambda: None).eval(), (4, 12), (), torch.float32)


def test_the_stream_of_another_thread_stays() -> None:
    """Another thread that redirects meanwhile, and puts back what it found, has a stream that writes all."""
    mine, theirs, first = io.StringIO(), io.StringIO(), sys.stderr
    sys.stderr = mine
    try:
        with quiet([]):
            found, sys.stderr = sys.stderr, theirs
        assert sys.stderr is theirs
        sys.stderr = found
        print("after", file=sys.stderr)
        assert mine.getvalue() == "after\n" and not theirs.getvalue() and not sys.stderr.isatty()
    finally:
        sys.stderr = first


def test_without_a_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with quiet(loggers_of_torch()):
        assert sys.stderr is None
