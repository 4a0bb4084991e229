# %% [markdown]
# The journey of the captioning exercises, in the order of their notebooks, on the embedded data set:
#
#     fastrnn data shapes data/shapes
#     python -m fastrnn.cs231n examples/exercises.py data/shapes runs/exercises
#
# The second argument is a directory for the pictures. Only names of `cs231n` are imported. In a notebook, put
# this before its imports: `import fastrnn; fastrnn.install_as_cs231n()`.

# %%
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from cs231n.captioning_solver import CaptioningSolver
from cs231n.classifiers.rnn import CaptioningRNN
from cs231n.coco_utils import decode_captions, load_coco_data, sample_coco_minibatch
from cs231n.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array, grad_check_sparse
from cs231n.image_utils import deprocess_image, image_from_url, preprocess_image
from cs231n.layers import *
from cs231n.optim import adam, rmsprop, sgd, sgd_momentum
from cs231n.rnn_layers import *

data_directory = sys.argv[1] if len(sys.argv) > 1 else "data/shapes"
pictures = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/exercises")
pictures.mkdir(parents=True, exist_ok=True)


def rel_error(x, y):
    """Largest relative error."""
    return np.max(np.abs(x - y) / (np.maximum(1e-8, np.abs(x) + np.abs(y))))


# %% [markdown]
# ## The data
# %%
data = load_coco_data(data_directory, pca_features=True)
for name, value in data.items():
    print(name, type(value), getattr(value, "shape", len(value)), getattr(value, "dtype", ""))

# %% Pictures with their captions
np.random.seed(231)
captions, features, urls = sample_coco_minibatch(data, batch_size=3)
figure, rows = plt.subplots(3, 1, figsize=(6, 9))
for axes, caption, url in zip(rows, captions, urls):
    axes.imshow(image_from_url(url, placeholder=True))
    axes.set_title(decode_captions(caption, data["idx_to_word"]), fontsize=8)
    axes.axis("off")
figure.savefig(pictures / "minibatch.png")
print("drawn:", pictures / "minibatch.png")


# %% [markdown]
# ## Vanilla RNN: one step, a sequence, and their gradients
# %%
def check(name, forward, inputs, output, douts, gradients):
    """Analytic gradients against central differences of the sum of the outputs times douts."""
    for (of, array), gradient in zip(inputs.items(), gradients):
        numeric = eval_numerical_gradient_array(lambda _: output(forward(*inputs.values())), array, douts)
        print(f"{name}, d{of} error: {rel_error(numeric, gradient):.1e}")


np.random.seed(231)
N, T, D, H = 3, 4, 5, 6
x, h0 = np.random.randn(N, D), np.random.randn(N, H)
Wx, Wh, b = np.random.randn(D, H), np.random.randn(H, H), np.random.randn(H)

next_h, cache = rnn_step_forward(x, h0, Wx, Wh, b)
dnext_h = np.random.randn(*next_h.shape)
inputs = {"x": x, "prev_h": h0, "Wx": Wx, "Wh": Wh, "b": b}
check("rnn_step", rnn_step_forward, inputs, lambda r: r[0], dnext_h, rnn_step_backward(dnext_h, cache))

x = np.random.randn(N, T, D)
h, cache = rnn_forward(x, h0, Wx, Wh, b)
dh = np.random.randn(*h.shape)
inputs = {"x": x, "h0": h0, "Wx": Wx, "Wh": Wh, "b": b}
check("rnn", rnn_forward, inputs, lambda r: r[0], dh, rnn_backward(dh, cache))

# %% [markdown]
# ## Word embedding, affine layers, loss
# %%
V, M = 7, 3
words = np.random.randint(V, size=(N, T))
W = np.random.randn(V, D)
out, cache = word_embedding_forward(words, W)
dout = np.random.randn(*out.shape)
dW = word_embedding_backward(dout, cache)
check("word_embedding", lambda W: word_embedding_forward(words, W), {"W": W}, lambda r: r[0], dout, [dW])

w, b = np.random.randn(D, M), np.random.randn(M)
out, cache = temporal_affine_forward(x, w, b)
dout = np.random.randn(*out.shape)
inputs = {"x": x, "w": w, "b": b}
check(
    "temporal_affine",
    temporal_affine_forward,
    inputs,
    lambda r: r[0],
    dout,
    temporal_affine_backward(dout, cache),
)
x = np.random.randn(N, 2, 3)
w = np.random.randn(6, M)
out, cache = affine_forward(x, w, b)  # flattens each example
dout = np.random.randn(*out.shape)
inputs = {"x": x, "w": w, "b": b}
check("affine", affine_forward, inputs, lambda r: r[0], dout, affine_backward(dout, cache))

for N, T, V, p in ((100, 1, 10, 1.0), (100, 10, 10, 1.0), (5000, 10, 10, 0.1)):  # about 2.3, 23 and 2.3
    x, y = 0.001 * np.random.randn(N, T, V), np.random.randint(V, size=(N, T))
    print(f"temporal_softmax_loss: {temporal_softmax_loss(x, y, np.random.rand(N, T) <= p)[0]:.4f}")
N, T, V = 7, 8, 9
x, y, mask = np.random.randn(N, T, V), np.random.randint(V, size=(N, T)), np.random.rand(N, T) > 0.5
loss, dx = temporal_softmax_loss(x, y, mask, verbose=False)
numeric = eval_numerical_gradient(lambda x: temporal_softmax_loss(x, y, mask)[0], x, verbose=False)
print(f"temporal_softmax_loss, dx error: {rel_error(numeric, dx):.1e}")

# %% [markdown]
# ## LSTM
# %%
N, T, D, H = 4, 7, 5, 6
h0, c0 = np.random.randn(N, H), np.random.randn(N, H)
Wx, Wh, b = np.random.randn(D, 4 * H), np.random.randn(H, 4 * H), np.random.randn(4 * H)
print("sigmoid of -1000, 0, 1000:", sigmoid(np.array([-1000.0, 0.0, 1000.0])))

x = np.random.randn(N, D)
next_h, next_c, cache = lstm_step_forward(x, h0, c0, Wx, Wh, b)
dnext = np.random.randn(2, *next_h.shape)
inputs = {"x": x, "prev_h": h0, "prev_c": c0, "Wx": Wx, "Wh": Wh, "b": b}
gradients = lstm_step_backward(dnext[0], dnext[1], cache)
check("lstm_step", lstm_step_forward, inputs, lambda r: np.stack(r[:2]), dnext, gradients)

x = np.random.randn(N, T, D)
h, cache = lstm_forward(x, h0, Wx, Wh, b)
dh = np.random.randn(*h.shape)
inputs = {"x": x, "h0": h0, "Wx": Wx, "Wh": Wh, "b": b}
check("lstm", lstm_forward, inputs, lambda r: r[0], dh, lstm_backward(dh, cache))

# %% [markdown]
# ## The model: its loss, and its gradient at a few places
# %%
word_to_idx = {"<NULL>": 0, "cat": 2, "dog": 3}  # a gap, and no START
N, D, W, H, T = 10, 20, 30, 40, 13
for cell_type, low, high in (("rnn", -1.5, 0.3), ("lstm", -0.5, 1.7)):  # 9.83235591003 and 9.82445935443
    model = CaptioningRNN(word_to_idx, D, W, H, cell_type=cell_type, dtype=np.float64)
    for name, value in model.params.items():
        model.params[name] = np.linspace(-1.4, 1.3, num=value.size).reshape(*value.shape)
    toy_features = np.linspace(low, high, num=N * D).reshape(N, D)
    toy_captions = (np.arange(N * T) % len(word_to_idx)).reshape(N, T)
    loss, grads = model.loss(toy_features, toy_captions)
    print(f"CaptioningRNN, {cell_type}: loss {loss:.11f}")

np.random.seed(231)
N, D, W, H, T = 2, 4, 5, 6, 3
model = CaptioningRNN(word_to_idx, D, W, H, cell_type="lstm", dtype=np.float64)
toy_features, toy_captions = np.random.randn(N, D), np.array([[1, 2, 1], [2, 1, 0]])
loss, grads = model.loss(toy_features, toy_captions)
for name in sorted(grads):
    print(name, end=": ")
    grad_check_sparse(
        lambda _: model.loss(toy_features, toy_captions)[0], model.params[name], grads[name], num_checks=1
    )

# %% [markdown]
# ## The update rules
# %%
for rule in (sgd, sgd_momentum, rmsprop, adam):
    w, config = np.linspace(-1, 1, 5), {"learning_rate": 1e-2}
    for _ in range(100):
        w, config = rule(w, 2 * w, config)  # downhill on the sum of w^2
    print(f"{rule.__name__}: {np.sum(w**2):.4f}")

# %% [markdown]
# ## Overfit 50 captions, and write captions of train and val pictures
# %%
np.random.seed(231)
small_data = load_coco_data(data_directory, max_train=50)
solvers = {}
for cell_type, lr_decay in (("rnn", 0.95), ("lstm", 0.995)):
    model = CaptioningRNN(
        cell_type=cell_type,
        word_to_idx=data["word_to_idx"],
        input_dim=data["train_features"].shape[1],
        hidden_dim=512,
        wordvec_dim=256,
        dtype=np.float32,
    )
    solvers[cell_type] = CaptioningSolver(
        model,
        small_data,
        update_rule="adam",
        num_epochs=50,
        batch_size=25,
        optim_config={"learning_rate": 5e-3},
        lr_decay=lr_decay,
        verbose=True,
        print_every=10,
    )
    solvers[cell_type].train()
    print(f"{cell_type}: final loss {solvers[cell_type].loss_history[-1]:.4f}")

figure, axes = plt.subplots()
for cell_type, solver in solvers.items():
    axes.plot(solver.loss_history, label=cell_type)
axes.set_xlabel("Iteration")
axes.set_ylabel("Loss")
axes.set_title("Training loss history")
axes.legend()
figure.savefig(pictures / "loss.png")

# %%
model = solvers["lstm"].model
for split in ("train", "val"):
    captions, features, urls = sample_coco_minibatch(small_data, split=split, batch_size=2)
    captions = decode_captions(captions, data["idx_to_word"])
    samples = decode_captions(model.sample(features), data["idx_to_word"])
    for caption, sample, url in zip(captions, samples, urls):
        img = image_from_url(url)
        if img is None:  # pictures on the web come and go
            continue
        figure, axes = plt.subplots()
        axes.imshow(deprocess_image(preprocess_image(img)))
        axes.set_title(f"{split}\n{sample}\nGT:{caption}")
        axes.axis("off")
        figure.savefig(pictures / f"{split}.png")
        plt.close(figure)
        print(f"{split}: {sample}\n  GT: {caption}")

# %% [markdown]
# ## BLEU of single captions, with nltk if it is there
# %%
try:
    from nltk.translate.bleu_score import sentence_bleu
except ImportError:
    print("BLEU: nltk is not installed")
else:

    def BLEU_score(true_caption, sample):
        """BLEU-1 of a sentence against one reference, without markers."""
        markers = ("<END>", "<START>", "<UNK>")
        reference = [word for word in true_caption.split(" ") if word not in markers]
        hypothesis = [word for word in sample.split(" ") if word not in markers]
        return sentence_bleu([reference], hypothesis, weights=[1])

    for split in ("train", "val"):
        captions, features, _ = sample_coco_minibatch(small_data, split=split, batch_size=100)
        captions = decode_captions(captions, data["idx_to_word"])
        samples = decode_captions(model.sample(features), data["idx_to_word"])
        scores = [BLEU_score(caption, sample) for caption, sample in zip(captions, samples)]
        print(f"BLEU of {split}: {np.mean(scores):.3f}")
