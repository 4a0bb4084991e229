"""Caption data sets: the published layout on disk, and making one from COCO-format files."""

from fastrnn.data.coco import (
    CaptionData,
    Split,
    decode_captions,
    load_coco_data,
    open_data,
    sample_coco_minibatch,
)
from fastrnn.data.coco_size import make_coco_size
from fastrnn.data.download import download_data
from fastrnn.data.pca import PCA
from fastrnn.data.prepare import prepare_data
from fastrnn.data.shapes import make_shapes

__all__ = [
    "PCA",
    "CaptionData",
    "Split",
    "decode_captions",
    "download_data",
    "load_coco_data",
    "make_coco_size",
    "make_shapes",
    "open_data",
    "prepare_data",
    "sample_coco_minibatch",
]
