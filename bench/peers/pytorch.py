"""PyTorch: nn.Embedding, nn.LSTM or nn.RNN, two Linear layers, fused Adam.

Three modes: ``padded``; ``packed`` (a PackedSequence, and the vocabulary on its live positions); ``live``
(padded, with the vocabulary on live positions only). With ``bfloat16`` the forward pass is under autocast.
"""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence

from fastrnn.bench import workload
from fastrnn.bench.peers import timed, training

torch.set_num_interop_threads(1)


def start(task, mode, dtype="float32"):
    """Compete in any task."""
    torch.set_num_threads(task.threads)
    return {
        "train": _train,
        "forward": _forward,
        "epoch": _train,
        "layer": _layer,
        "ragged": _layer,
        "decode": _decode,
        "product": _product,
    }[task.kind](task, mode, torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"))


def _reordered(w):
    """Gates i f o g as PyTorch's i f g o, along the last axis."""
    i, f, o, g = np.split(w, 4, axis=-1)
    return np.concatenate([i, f, g, o], axis=-1)


def _recurrent(cell, params):
    """A layer with the given Wx (D,mH), Wh (H,mH), b (mH,)."""
    Wx, Wh, b = map(_reordered, params) if cell == "lstm" else params
    kind = nn.LSTM if cell == "lstm" else nn.RNN
    layer = kind(Wx.shape[0], Wh.shape[0], batch_first=True)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.from_numpy(Wx.T.copy()))
        layer.weight_hh_l0.copy_(torch.from_numpy(Wh.T.copy()))
        layer.bias_ih_l0.copy_(torch.from_numpy(b))
        layer.bias_hh_l0.zero_()
    layer.bias_hh_l0.requires_grad_(False)  # the others have one bias, and two would learn twice as fast
    return layer


class Captioner(nn.Module):
    def __init__(self, task):
        super().__init__()
        params = workload.model(task).params
        self.cell = task.cell
        self.embed = nn.Embedding.from_pretrained(torch.from_numpy(params["W_embed"]), freeze=False)
        self.recurrent = _recurrent(task.cell, (params["Wx"], params["Wh"], params["b"]))
        self.project = nn.Linear(workload.D, task.H)
        self.vocabulary = nn.Linear(task.H, task.V)
        with torch.no_grad():
            for layer, name in ((self.project, "proj"), (self.vocabulary, "vocab")):
                layer.weight.copy_(torch.from_numpy(params[f"W_{name}"].T.copy()))
                layer.bias.copy_(torch.from_numpy(params[f"b_{name}"]))

    def state(self, features):
        h = self.project(features)[None]
        return (h, torch.zeros_like(h)) if self.cell == "lstm" else h

    def forward(self, features, captions, mode):
        """The loss as published: summed over the targets that are no NULL, divided by N."""
        inputs, targets = captions[:, :-1], captions[:, 1:]
        x, state, live = self.embed(inputs), self.state(features), targets != 0
        if mode == "packed":
            lengths = live.sum(dim=1)
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            h = self.recurrent(packed, state)[0].data
            targets = pack_padded_sequence(targets, lengths, batch_first=True, enforce_sorted=False).data
        else:
            h = self.recurrent(x, state)[0]
            if mode == "live":
                h, targets = h[live], targets[live]
            else:
                h, targets = h.flatten(0, 1), targets.flatten()
        return cross_entropy(self.vocabulary(h), targets, ignore_index=0, reduction="sum") / len(features)


def _tensors(batch):
    features, captions = batch
    return torch.from_numpy(features), torch.from_numpy(captions).long()


def _train(task, mode, autocast):
    model = Captioner(task)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    batch = workload.batches(task)[0]

    def step(*batch):
        optimiser.zero_grad(set_to_none=True)
        with autocast:
            loss = model(*_tensors(batch), mode)
        loss.backward()
        optimiser.step()
        return loss.item()

    before = step(*batch)
    with torch.no_grad(), autocast:
        return [before, model(*_tensors(batch), mode).item()], training(task, step)


def _forward(task, mode, autocast):
    model = Captioner(task).eval()
    batch = workload.batches(task)[0]

    def once():
        with torch.inference_mode(), autocast:
            return model(*_tensors(batch), mode).item()

    return once(), timed(once)


def _layer(task, mode, autocast):
    x, h0, params, dh = workload.layer(task)
    layer = _recurrent("lstm", params)
    lengths = workload.lengths(task) if task.kind == "ragged" else None
    x_, h0_, dh_ = (torch.from_numpy(a) for a in (x, h0, dh))
    x_.requires_grad_()
    h0_.requires_grad_()

    def once():
        for tensor in (x_, h0_, *layer.parameters()):
            tensor.grad = None
        state = h0_[None], torch.zeros_like(h0_)[None]
        if mode == "packed":
            given = task.T * np.ones(task.N, int) if lengths is None else lengths
            packed = pack_padded_sequence(x_, torch.from_numpy(given), batch_first=True, enforce_sorted=False)
            h, _ = nn.utils.rnn.pad_packed_sequence(
                layer(packed, state)[0], batch_first=True, total_length=task.T
            )
        else:
            h, _ = layer(x_, state)
        h.backward(dh_)
        return h.detach().numpy(), x_.grad.numpy()

    return workload.summary(once(), lengths), timed(once)


def _decode(task, mode, autocast):
    model = Captioner(task).eval()
    features = torch.from_numpy(workload.batches(task)[0][0])

    @torch.no_grad()
    def once():
        state = model.state(features)
        words = torch.ones(task.N, dtype=torch.long)
        captions = torch.empty(task.N, workload.DECODED, dtype=torch.int32)
        for t in range(workload.DECODED):
            h, state = model.recurrent(model.embed(words)[:, None], state)
            words = model.vocabulary(h[:, 0]).argmax(dim=1)
            captions[:, t] = words
        return captions.numpy()

    return once()[:, :5].tolist(), timed(once)


def _product(task, mode, autocast):
    h, Wh = map(torch.from_numpy, workload.recurrent_product(task))
    out = torch.empty(task.N, Wh.shape[1])

    def once():
        return torch.matmul(h, Wh, out=out)

    return once().abs().sum().item(), timed(once)
