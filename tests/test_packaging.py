"""What is installed: the kernels as fastrnn.kernels, and nothing by the name of kernels."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fastrnn

ROOT = Path(__file__).parents[1]
FOLDERS = ("fastrnn", "kernels", "bench")


@pytest.mark.parametrize("compiler", [None, "no-such-compiler"])
def test_the_wheel(tmp_path, compiler):
    """Built from a copy, so that nothing is left in the checkout and nothing old there is packed.

    Without a compiler the compiled kernels are missing, and all else is there.
    """
    source = tmp_path / "source"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path)
    environment = os.environ | ({"CC": compiler, "FASTRNN_REQUIRE_CYTHON": "0"} if compiler else {})
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, source], check=True, env=environment)
    (wheel,) = tmp_path.glob("fastrnn-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"fastrnn/py.typed", "fastrnn/data/coco.py", "fastrnn/kernels/numpy_kernels.py"} <= names
    assert {"fastrnn/bench/report.py", "fastrnn/bench/peers/__main__.py"} <= names
    assert not [name for name in names if name.endswith((".png", ".json"))]  # results of some machine
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"fastrnn"}
    compiled = any(name.startswith("fastrnn/kernels/cython_kernels.") for name in names)
    assert compiled == (compiler is None and "cython" in fastrnn.available_backends())


def test_a_failed_build_is_an_error_where_it_is_asked_for(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so")
        )
    environment = os.environ | {"CC": "no-such-compiler", "FASTRNN_REQUIRE_CYTHON": "1"}
    result = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
    )
    assert result.returncode != 0
    assert b"no-such-compiler" in result.stderr


def test_the_folder_is_not_a_package_of_its_own():
    with pytest.raises(ImportError, match=r"import fastrnn\.kernels, not kernels"):
        __import__("kernels")
