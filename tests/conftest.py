"""Shared fixtures, and on which devices tests run.

Environment: ``YUZU_TEST_THREADS`` is the number of threads torch may use (default 1). Tests on CUDA are collected where
there is such a device. With ``YUZU_TEST_DEVICES=cuda`` they are collected anywhere, and fail where there is none; with
``YUZU_TEST_DEVICES=cpu`` they are never collected.
"""

import gc
import math
import os

os.environ.setdefault("MPLBACKEND", "Agg")  # pictures are drawn where there is no screen
os.environ.pop("TQDM_DISABLE", None)  # before torch imports tqdm: what its bars say is tested

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before yuzu is imported: kernels are tested on the CPU

pytest.register_assert_rewrite("tests.oracle", "tests.laws")
from tests.capturing import capturing_once  # noqa: E402
from tests.small_models import Net, Profile, randomized  # noqa: E402

pytest_plugins = [  # fixtures that several files of a topic share
    "tests.contract",
    "tests.jobs",
    "tests.kernels.layers",
    "tests.runs.small",
    "tests.store.models",
    "tests.store.saved",
    "tests.untouched",
]

collect_ignore = ["typing/snippets.py"]  # for mypy, not to be run

torch.set_num_threads(int(os.environ.get("YUZU_TEST_THREADS", "1")))
gc.set_threshold(
    100_000, 20, 50
)  # torch.export makes many objects: with Python's default a fifth of the time is collection


WANTED_DEVICES = os.environ.get("YUZU_TEST_DEVICES", "")


def devices():
    """The devices to test on. CUDA is left out where it is missing: thousands of tests would be skipped one by one."""
    if WANTED_DEVICES != "cpu" and (torch.cuda.is_available() or "cuda" in WANTED_DEVICES):
        return ["cpu", "cuda"]
    return ["cpu"]


def pytest_report_header():
    return f"yuzu: devices {', '.join(devices())}"


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:  # now, not at import: `pretended_cuda` is installed between the two
        metafunc.parametrize("device", devices(), indirect=True, scope="session")


@pytest.fixture(scope="session")
def device(request):
    """Each device in turn."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.fail(f"YUZU_TEST_DEVICES={WANTED_DEVICES} asks for CUDA, which is not available")
    return request.param


@pytest.fixture(autouse=True)
def plans_are_not_compared_with_the_model(monkeypatch):
    """By the clock a plan may lose to the model on a busy machine. Tests are about the plan; those of the comparison set
    this themselves.
    """
    from yuzu._engine.tune import chunks

    monkeypatch.setattr(chunks, "WORTH_COMPARING", math.inf)


@pytest.fixture(autouse=True)
def stages_are_not_said_on_slow_machines(monkeypatch):
    """What takes more than three seconds says so on standard error, which tests compare with nothing."""
    from yuzu._engine import progress

    monkeypatch.setattr(progress, "PATIENCE", 600.0)


@pytest.fixture
def captured_once():
    with capturing_once():
        yield


@pytest.fixture(scope="session")
def net():
    """One `Net` for sequences of length 30."""
    return randomized(Net(), seed=1).eval()


@pytest.fixture(scope="session")
def profile():
    """One `Profile`; its output has two tensors."""
    return randomized(Profile(), seed=2).eval()
