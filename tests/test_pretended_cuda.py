"""`pretended_cuda`: what fails on a GPU fails there, and some tests on CUDA pass. (All of them: make test-pretended-cuda)"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is available")

HERE = Path(__file__).parent
SCRIPT = """
import numpy as np, pretended_cuda, torch, yuzu

assert not torch.cuda.is_available(), "importing it does nothing"
pretended_cuda.install()
there, here = torch.ones(3, device="cuda"), torch.ones(3)
assert there.is_cuda and there.device == (there + 1).device == here.to("cuda").device == torch.device("cuda", 0)
assert not there.cpu().is_cuda and not there.to(here).is_cuda and there.to(here).numpy().sum() == 3
copied = here.cuda()
copied += there
assert copied.is_cuda and here.sum() == 3 and (here[:1].view(()) * there).is_cuda
for wrong in (lambda: there + here, lambda: torch.cat([here, there]), lambda: np.asarray(there), there.numpy):
    try:
        wrong()
    except (RuntimeError, TypeError) as error:
        assert "cuda:0" in str(error), error
    else:
        raise AssertionError(f"{wrong} went through")

class Mixed(torch.nn.Module):
    def forward(self, x):
        return (x * torch.arange(1.0, x.shape[2] + 1)).flatten(1).cumsum(1)[:, -1:]

X = torch.zeros(1, 4, 9)
X[:, 1] = 1
try:
    yuzu.naive_ism(Mixed(), X, device="cuda")
except yuzu.YuzuError as error:
    assert "cuda:0" in str(error), error
else:
    raise AssertionError("a model of two devices ran")
"""


def run(*command):
    environment = {**os.environ, "PYTHONPATH": str(HERE), "TRITON_INTERPRET": "1", "YUZU_TEST_DEVICES": "cuda"}
    command = [sys.executable, *command]
    return subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False)


def test_two_devices_do_not_go_together():
    done = run("-c", SCRIPT)
    assert done.returncode == 0, done.stderr


def test_tests_on_cuda_run_on_it():
    tests = [str(HERE / f"{name}.py") for name in ("handlers/test_small_differences", "test_saturation_mutagenesis", "test_taylor")]
    done = run("-m", "pytest", "-q", "-p", "pretended_cuda", "-p", "no:cacheprovider", "-n", "0", "-k", "cuda", *tests)
    assert done.returncode == 0 and " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-3000:]
