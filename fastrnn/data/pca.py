"""Principal components of image features, fitted in slices so that the features need not fit in memory."""

from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np

from fastrnn import files
from fastrnn.arrays import Array
from fastrnn.files import StrPath


class PCA(NamedTuple):
    """A projection of raw features (n,D) onto K components: (raw - mean) components^T."""

    mean: Array  # (D,) float32
    components: Array  # (K,D) float32, orthonormal rows, the largest variance first

    @classmethod
    def fit(cls, slices: Iterable[Array], K: int) -> Self:
        """Fit K components to slices (n,D) of the features, each with n >= K rows.

        Uses scikit-learn's IncrementalPCA (Ross et al., IJCV 2008), extra ``prepare``.
        """
        try:
            from sklearn.decomposition import IncrementalPCA
        except ImportError as error:
            raise ImportError("a PCA needs scikit-learn: pip install 'fastrnn[prepare]'") from error
        fitted = IncrementalPCA(n_components=K)
        for features in slices:
            fitted.partial_fit(features)
        return cls(fitted.mean_.astype(np.float32), fitted.components_.astype(np.float32))

    def project(self, raw: Array) -> Array:
        """Raw features (n,D) as float32 (n,K). Raises ``ValueError`` for another width than D."""
        if raw.ndim != 2 or raw.shape[1] != len(self.mean):
            raise ValueError(f"raw: expected shape (n,D) with D={len(self.mean)}, got {raw.shape}")
        projected: Array = (np.asarray(raw, np.float32) - self.mean) @ self.components.T
        return projected

    def save(self, path: StrPath) -> None:
        """Write the projection as a safetensors file."""
        files.write_tensors(path, self._asdict(), {})

    @classmethod
    def load(cls, path: StrPath) -> Self:
        """Read what :meth:`save` wrote. Raises ``ValueError`` naming the file if it holds no PCA."""
        arrays, _ = files.read_tensors(path)
        if arrays.keys() != set(cls._fields):
            raise ValueError(f"{path}: expected arrays {', '.join(cls._fields)}, got {', '.join(arrays)}")
        return cls(**arrays)
