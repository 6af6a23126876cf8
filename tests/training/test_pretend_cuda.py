"""tests/test_cuda.py on a CUDA device that is not there: devices, dtypes and waits are right without a GPU."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parents[1]
COMPILER = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="for Linux without CUDA")
def test_what_is_tested_on_cuda_passes_on_a_pretended_one(tmp_path):
    library, at = tmp_path / "pretend_cuda.so", Path(torch.__file__).parent
    subprocess.run(
        [COMPILER, "-std=c++20", "-O0", "-shared", "-fPIC", HERE / "pretend_cuda.cpp", "-o", library,
         "-I", at / "include", "-L", at / "lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{at / 'lib'}"],
        check=True,
    )  # fmt: skip
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "pretend_cuda", "-p", "no:cacheprovider"),
            *("-m", "not real_gpu", HERE / "training" / "test_cuda.py"),
        ],
        env={**os.environ, "RETAIN_PRETEND_CUDA": str(library), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    summary = done.stdout.splitlines()[-1]
    assert int(re.search(r"(\d+) passed", summary)[1]) > 10 and "skipped" not in summary
