"""What is installed: the kernels as fastrnn.kernels, and nothing by the name of kernels."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_wheel(tmp_path):
    """Built from a copy, so that nothing is left in the checkout and nothing old there is packed."""
    source = tmp_path / "source"
    for folder in ("fastrnn", "kernels"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path)
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, source], check=True)
    (wheel,) = tmp_path.glob("fastrnn-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"fastrnn/py.typed", "fastrnn/data/coco.py", "fastrnn/kernels/numpy_kernels.py"} <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"fastrnn"}


def test_the_folder_is_not_a_package_of_its_own():
    with pytest.raises(ImportError, match=r"import fastrnn\.kernels, not kernels"):
        __import__("kernels")
