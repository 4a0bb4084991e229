"""fastrnn: fast training and decoding of recurrent image captioners on CPUs, NumPy arrays in and out."""

from fastrnn import data, gradient_check, layers, optim
from fastrnn.backend import (
    available_backends,
    current_backend,
    get_num_threads,
    set_num_threads,
    show_config,
    use_backend,
    warmup,
)
from fastrnn.captioning import CaptioningRNN
from fastrnn.data import (
    decode_captions,
    load_coco_data,
    open_data,
    sample_coco_minibatch,
)
from fastrnn.gradient_check import (
    eval_numerical_gradient,
    eval_numerical_gradient_array,
    eval_numerical_gradient_blobs,
    eval_numerical_gradient_net,
    grad_check_sparse,
)
from fastrnn.images import deprocess_image, image_from_url, load_image, preprocess_image
from fastrnn.layers import (
    affine_backward,
    affine_forward,
    lstm_backward,
    lstm_forward,
    lstm_step_backward,
    lstm_step_forward,
    rnn_backward,
    rnn_forward,
    rnn_step_backward,
    rnn_step_forward,
    sigmoid,
    temporal_affine_backward,
    temporal_affine_forward,
    temporal_softmax_loss,
    word_embedding_backward,
    word_embedding_forward,
)
from fastrnn.optim import adam, rmsprop, sgd, sgd_momentum
from fastrnn.solver import CaptioningSolver

__version__ = "0.1.0"


def install_as_cs231n() -> None:
    """Make ``import cs231n...`` resolve to fastrnn from here on: see :mod:`fastrnn.cs231n`."""
    from fastrnn import cs231n  # not above: ``python -m fastrnn.cs231n`` must be its first import

    cs231n.install_as_cs231n()


__all__ = [
    "CaptioningRNN",
    "CaptioningSolver",
    "adam",
    "affine_backward",
    "affine_forward",
    "available_backends",
    "current_backend",
    "data",
    "decode_captions",
    "deprocess_image",
    "eval_numerical_gradient",
    "eval_numerical_gradient_array",
    "eval_numerical_gradient_blobs",
    "eval_numerical_gradient_net",
    "get_num_threads",
    "grad_check_sparse",
    "gradient_check",
    "image_from_url",
    "install_as_cs231n",
    "layers",
    "load_coco_data",
    "load_image",
    "lstm_backward",
    "lstm_forward",
    "lstm_step_backward",
    "lstm_step_forward",
    "open_data",
    "optim",
    "preprocess_image",
    "rmsprop",
    "rnn_backward",
    "rnn_forward",
    "rnn_step_backward",
    "rnn_step_forward",
    "sample_coco_minibatch",
    "set_num_threads",
    "sgd",
    "sgd_momentum",
    "show_config",
    "sigmoid",
    "temporal_affine_backward",
    "temporal_affine_forward",
    "temporal_softmax_loss",
    "use_backend",
    "warmup",
    "word_embedding_backward",
    "word_embedding_forward",
]
