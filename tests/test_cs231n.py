"""``import cs231n...`` resolves to fastrnn, in fresh processes, with and without a real folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastrnn
from fastrnn.data import make_shapes

EVERY_IMPORT = """
from cs231n.rnn_layers import *
from cs231n.layers import *
from cs231n.layer_utils import *
import cs231n.optim as optim
from cs231n.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array
from cs231n.gradient_check import eval_numerical_gradient_blobs, eval_numerical_gradient_net
from cs231n.gradient_check import grad_check_sparse
from cs231n.classifiers.rnn import CaptioningRNN
from cs231n.captioning_solver import CaptioningSolver
from cs231n.coco_utils import load_coco_data, sample_coco_minibatch, decode_captions
from cs231n.image_utils import image_from_url, load_image, preprocess_image, deprocess_image
import fastrnn
from fastrnn import layers
for name in layers.__all__:
    assert globals()[name] is getattr(layers, name), name
assert optim.adam is fastrnn.adam
assert CaptioningRNN is fastrnn.CaptioningRNN
assert CaptioningSolver is fastrnn.CaptioningSolver
assert load_coco_data is fastrnn.load_coco_data
assert eval_numerical_gradient is fastrnn.eval_numerical_gradient
assert image_from_url is fastrnn.image_from_url
"""


@pytest.fixture
def real_folder(tmp_path):
    """A cs231n folder as the exercises have it: half-done layers, and much that fastrnn does not replace."""
    folder = tmp_path / "cs231n"
    (folder / "classifiers").mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "classifiers/__init__.py": "from .softmax import *\n",
        "classifiers/softmax.py": "def softmax_loss_naive(): return 'real'\n",
        "classifiers/rnn.py": "from ..rnn_layers import *\nclass CaptioningRNN: pass\nclass Mine: pass\n",
        "layers.py": "def affine_forward(x, w, b): pass\ndef conv_forward(): return 'real'\n",
        "rnn_layers.py": "__all__ = ['mine']\ndef mine(): return 'real'\ndef rnn_forward(): pass\n",
        "optim.py": "from no_such_module import xrange\n",
        "data_utils.py": "def get_CIFAR10_data(): return 'real'\n",
        "coco_utils.py": "def load_coco_data(*args, **kwargs): return 'real'\n",
        "captioning_solver.py": "from cs231n import optim\nclass CaptioningSolver: pass\n",
    }.items():
        (folder / name).write_text(text)
    return tmp_path


def python(*arguments, cwd):
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)


def test_without_a_real_folder(tmp_path):
    code = f"import fastrnn\nfastrnn.install_as_cs231n()\nfastrnn.install_as_cs231n()\n{EVERY_IMPORT}"
    code += "\ntry:\n    import cs231n.data_utils\nexcept ModuleNotFoundError:\n    print('no data_utils')"
    result = python("-W", "error", "-c", code, cwd=tmp_path)
    assert result.stdout == "no data_utils\n", result.stderr


def test_with_a_real_folder(real_folder):
    """fastrnn's names over the folder's, the rest from the folder; what fails there is told and left out."""
    code = f"""
import cs231n.rnn_layers, cs231n.layers
before = cs231n.rnn_layers.rnn_forward
import fastrnn
fastrnn.install_as_cs231n()
{EVERY_IMPORT}
assert rnn_forward is not before
from cs231n.layers import conv_forward
from cs231n.rnn_layers import mine
from cs231n.classifiers.rnn import Mine
from cs231n.classifiers import softmax_loss_naive
from cs231n.data_utils import get_CIFAR10_data
print(conv_forward(), mine(), softmax_loss_naive(), get_CIFAR10_data())
import importlib
importlib.reload(cs231n.rnn_layers)
assert cs231n.rnn_layers.rnn_forward is fastrnn.rnn_forward
"""
    result = python("-c", code, cwd=real_folder)
    assert result.stdout == "real real real real\n", result.stderr
    assert "cs231n.optim: only fastrnn's names are there" in result.stderr
    assert "no_such_module" in result.stderr


@pytest.mark.parametrize("where", ["bare", "real"])
def test_scripts(tmp_path, request, where):
    if where == "real":
        request.getfixturevalue("real_folder")
    script = tmp_path / "script.py"
    script.write_text(f"import sys\n{EVERY_IMPORT}\nprint(sys.argv[1:], __name__)")
    result = python("-m", "fastrnn.cs231n", "script.py", "a", "b", cwd=tmp_path)
    assert result.stdout == "['a', 'b'] __main__\n", result.stderr
    assert result.returncode == 0


def test_scripts_that_are_not_there(tmp_path):
    for arguments, message in (((), "no script given"), (("nowhere.py",), "nowhere.py: no such file")):
        result = python("-m", "fastrnn.cs231n", *arguments, cwd=tmp_path)
        assert (result.returncode, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert message in line


# ---------------------------------------------------------------------------------------------------
# The whole journey of the exercises, in examples/exercises.py


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("journey") / "data"
    make_shapes(directory, train=60, val=10)
    return directory


@pytest.mark.parametrize("where", ["bare", "real"])
def test_the_journey_of_the_exercises(tmp_path, data, request, where):
    if where == "real":
        request.getfixturevalue("real_folder")
    script = Path(__file__).parents[1] / "examples" / "exercises.py"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    result = subprocess.run(
        [sys.executable, "-m", "fastrnn.cs231n", str(script), str(data), str(tmp_path / "out")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert ("cs231n.optim: only fastrnn's names are there" in result.stderr) == (where == "real")
    out = result.stdout
    errors = dict(re.findall(r"^(\w+, d\w+) error: (.*)$", out, re.MULTILINE))
    assert len(errors) == 29
    assert max(map(float, errors.values())) < 1e-5, errors
    assert "CaptioningRNN, rnn: loss 9.83235591003\n" in out
    assert "CaptioningRNN, lstm: loss 9.82445935443\n" in out
    sparse = re.findall(r"^(\w+): numerical: .*relative error: (.*)$", out, re.MULTILINE)
    assert len(sparse) == 8
    assert max(float(error) for _, error in sparse) < 1e-4, sparse
    for rule, largest in (("sgd", 0.1), ("sgd_momentum", 0.1), ("rmsprop", 0.1), ("adam", 0.2)):
        assert float(re.search(rf"^{rule}: (.*)$", out, re.MULTILINE)[1]) < largest
    for cell_type in ("rnn", "lstm"):
        assert float(re.search(rf"^{cell_type}: final loss (.*)$", out, re.MULTILINE)[1]) < 2
    assert float(re.search(r"^BLEU of train: (.*)$", out, re.MULTILINE)[1]) > 0.8
    assert 0 < float(re.search(r"^BLEU of val: (.*)$", out, re.MULTILINE)[1]) < 1
    assert "no picture" not in out
    for name in ("minibatch", "loss", "train", "val"):
        assert fastrnn.load_image(tmp_path / "out" / f"{name}.png").std() > 1


def test_the_data_beside_a_real_folder(real_folder, data, tmp_path_factory):
    """Found from any working directory, as the published loader finds it."""
    place = real_folder / "cs231n" / "datasets"
    place.mkdir()
    (place / "coco_captioning").symlink_to(data)
    code = "import fastrnn; fastrnn.install_as_cs231n()\nfrom cs231n.coco_utils import load_coco_data\n"
    code += "print(len(load_coco_data()['train_captions']))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path_factory.mktemp("elsewhere"),
        env=os.environ | {"PYTHONPATH": str(real_folder)}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.stdout == f"base dir  {place / 'coco_captioning'}\n300\n", result.stderr
