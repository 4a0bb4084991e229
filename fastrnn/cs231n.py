"""Makes ``import cs231n...`` resolve to fastrnn, so that code of the exercises runs unchanged.

In a notebook, before its own imports: ``import fastrnn; fastrnn.install_as_cs231n()``. For a script:
``python -m fastrnn.cs231n script.py arguments``.

A real ``cs231n`` folder may be importable or not. Where it is, its modules run as they are, and in those that
fastrnn replaces, fastrnn's names then take the place of the folder's; everything else stays the folder's.
"""

import importlib
import runpy
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_PACKAGES = ("cs231n", "cs231n.classifiers")
_NAMES = {  # module of the exercises: where its names are, and which; None: all of __all__
    "cs231n.rnn_layers": ("fastrnn.layers", None),
    "cs231n.layers": ("fastrnn.layers", ("affine_forward", "affine_backward")),
    "cs231n.layer_utils": ("fastrnn.layers", ("affine_forward", "affine_backward")),
    "cs231n.optim": ("fastrnn.optim", None),
    "cs231n.gradient_check": ("fastrnn.gradient_check", None),
    "cs231n.coco_utils": (
        "fastrnn.data",
        ("load_coco_data", "sample_coco_minibatch", "decode_captions"),
    ),
    "cs231n.image_utils": (
        "fastrnn.images",
        ("image_from_url", "load_image", "preprocess_image", "deprocess_image"),
    ),
    "cs231n.captioning_solver": ("fastrnn.solver", ("CaptioningSolver",)),
    "cs231n.classifiers.rnn": ("fastrnn.captioning", ("CaptioningRNN",)),
}


def install_as_cs231n() -> None:
    """From here on, ``import cs231n...`` gives fastrnn's functions and classes.

    Modules of a real ``cs231n`` that were imported before are imported anew when asked for again. Calling it
    twice does no harm.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for name in _NAMES:
        if not isinstance(getattr(sys.modules.get(name), "__loader__", None), _Replacement):
            sys.modules.pop(name, None)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _PACKAGES and fullname not in _NAMES:
            return None
        real = self._real_spec(fullname, path, target)
        if fullname in _NAMES:
            return ModuleSpec(fullname, _Replacement(real), origin=real.origin if real else None)
        return real or ModuleSpec(fullname, None, is_package=True)

    def _real_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        """What the import system finds without us."""
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)):
                return spec
        return None


class _Replacement(Loader):
    """Runs the real module, if there is one, and lays fastrnn's names over its own."""

    def __init__(self, real: ModuleSpec | None) -> None:
        self.real = real

    def exec_module(self, module: ModuleType) -> None:
        if self.real is not None and self.real.loader is not None:
            try:
                self.real.loader.exec_module(module)
            except Exception as error:
                warnings.warn(
                    f"{module.__name__}: only fastrnn's names are there: {self.real.origin} fails: {error!r}",
                    stacklevel=2,
                )
        source_name, names = _NAMES[module.__name__]
        source = importlib.import_module(source_name)
        ours = {name: getattr(source, name) for name in names or source.__all__}
        vars(module).update(ours)
        if hasattr(module, "__all__"):
            vars(module)["__all__"] = sorted({*module.__all__, *ours})


def main(arguments: Sequence[str]) -> int:
    """Run a script of the exercises on fastrnn, as ``python script.py arguments`` would."""
    if not arguments or not Path(arguments[0]).is_file():
        given = f"{arguments[0]}: no such file" if arguments else "no script given"
        print(f"fastrnn.cs231n: {given}: python -m fastrnn.cs231n script.py ...", file=sys.stderr)
        return 2
    install_as_cs231n()
    sys.argv[:] = arguments
    sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
    runpy.run_path(arguments[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    # of the module that scripts import, not of this second copy of it
    sys.exit(importlib.import_module("fastrnn.cs231n").main(sys.argv[1:]))
