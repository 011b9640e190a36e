"""`make test-gpu` starts: its commands run on the native build. Without a GPU, tests that need one are skipped."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from native_build import BUILD

ROOT = Path(__file__).parents[2]


def test_test_gpu_starts(driver):
    if shutil.which("make") is None:
        pytest.skip("no make")
    # the machine code is the same that this run reads itself; -o: what was built is taken as it is
    environment = os.environ | {"PYTEST_ADDOPTS": "--ignore=tests/cuda/test_machine_code.py"}
    command = ["make", "test-gpu", "-o", f"{BUILD}/.built", f"GPU_BUILD={BUILD}", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = [int(count) for count in re.findall(r"(\d+) passed", done.stdout)]
    assert len(passed) == 2, done.stdout
    assert passed[1] >= 6, "the plugin's and the kernels' tests ran"


def test_test_gpu_needs_pytorch_numpy_and_pytest_alone():
    tests = ROOT / "tests"
    own = [*tests.glob("gpu/*.py"), *tests.glob("cuda/test_*.py"), tests / "cuda" / "machine_code.py"]
    for path in [*own, tests / "plugin" / "test_plugin.py", tests / "native_build.py"]:
        nodes = ast.parse(path.read_text()).body
        taken = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
        taken |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        roots = {name.split(".")[0] for name in taken} - sys.stdlib_module_names
        local = {"native_build", "machine_code", "gpu_library", "gpu_oracles", "gpu_bench"}
        assert roots <= {"numpy", "pytest", "torch", *local}, path.name
