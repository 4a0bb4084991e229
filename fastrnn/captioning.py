"""The captioning model: image features start a recurrent network that writes the caption word by word."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastrnn import backend, decoding, files, recurrence
from fastrnn.arrays import Array, fresh_memory, in_one_piece, integers, real, real_type, reals, tokens
from fastrnn.data.pca import PCA
from fastrnn.files import StrPath

_FORMAT = "fastrnn.CaptioningRNN 1"
_GATES = {"rnn": 1, "lstm": 4}  # blocks of H columns in Wx, Wh and b


class _Batch(NamedTuple):
    """Captions packed to their live tokens: what follows the last target changes nothing."""

    packed: recurrence.Packed
    words: Array  # (U,) the distinct input tokens
    rows: Array  # (S,) packed row s reads words[rows[s]]
    targets: Array  # (S,)
    mask: Array  # (S,) 1, or 0 where the target is NULL


@dataclass(frozen=True)
class Dropout:
    """What training sets to zero at an iteration; the rest is scaled to keep its mean.

    (Srivastava et al., JMLR 2014.) ``outputs`` is the probability for each number of a hidden state on its
    way to the scores, ``words`` that for each number of a word vector, drawn once for all places of the word
    in the minibatch. Both are from 0 to below 1, otherwise ``ValueError`` is raised.

    The draws depend on ``seed``, ``iteration`` and the caption's place in the whole minibatch, or the word,
    and on nothing else: a share of a minibatch that begins at its caption ``first`` drops what the whole
    would, and a generator's state need not be kept. (Philox: Salmon et al., SC 2011.)
    """

    outputs: float = 0.0
    words: float = 0.0
    seed: int = 0
    iteration: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        for name in ("outputs", "words"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name}: expected a probability from 0 to below 1, got {getattr(self, name)}"
                )

    def of_outputs(self, N: int, T: int, H: int, dtype: DTypeLike) -> Array:
        """Factors (N*T,H) for the hidden states of captions."""
        return self._factors(self.outputs, 1, self.first, N, T * H, dtype).reshape(N * T, H)

    def of_words(self, V: int, E: int, dtype: DTypeLike) -> Array:
        """Factors (V,E) for the word vectors."""
        return self._factors(self.words, 0, 0, V, E, dtype)

    def _factors(self, p: float, stream: int, first: int, rows: int, width: int, dtype: DTypeLike) -> Array:
        """Factors (rows,width), each row from the start of a block of the stream on."""
        blocks = -(-width // 8)  # of 8 draws, for a row
        bits = np.random.Philox(key=[self.seed, self.iteration], counter=[first * blocks, 0, 0, stream])
        draws = np.random.Generator(bits).random((rows, 8 * blocks), np.float32)[:, :width]
        return np.multiply(draws >= p, 1 / (1 - p), dtype=dtype)


def _packed(kernels: backend.Kernels, name: str, W: Array, gates: int) -> Any:
    """Weights for many steps, in memory that is kept for those of that name."""
    return kernels.pack(W, gates, backend.kept_work(kernels, name))


class _ProjectedWords:
    """x Wx + b of the words that decoding meets, each computed when first met."""

    def __init__(self, kernels: backend.Kernels, work: Any, W_embed: Array, Wx: Array, b: Array) -> None:
        self.kernels, self.work = kernels, work
        self.W_embed, self.Wx, self.b = W_embed, _packed(kernels, "Wx", Wx, 1), b
        # projected inputs; only rows of words that were met are touched
        (self.a,) = in_one_piece(backend.kept_memory("a"), b.dtype, (len(W_embed), len(b)))
        self.rows = np.full(len(W_embed), -1)  # of each word in a
        self.met = 0

    def of(self, words: Array) -> tuple[Array, Array]:
        """Projected inputs (.,mH), and the row of each of the words (N,) in them."""
        rows = self.rows[words]
        if rows.min() < 0:
            new = np.unique(words[rows < 0]) if len(words) > 1 else words
            x = np.empty((len(new), self.W_embed.shape[1]), self.b.dtype)
            first, self.met = self.met, self.met + len(new)
            self.kernels.embedding_forward(new, self.W_embed, x)
            self.kernels.affine_forward(x, self.Wx, self.b, self.a[first : self.met], self.work)
            self.rows[new] = np.arange(first, self.met)
            rows = self.rows[words]
        return self.a, rows


class CaptioningRNN:
    """A captioner as published: features -> h0 -> RNN or LSTM over word vectors -> scores of the next word.

    ``word_to_idx`` maps words to 0..V-1 and must have ``<NULL>``; ``<START>`` and ``<END>`` may be missing.
    ``input_dim`` is the width D of the image features, ``wordvec_dim`` W that of the word vectors,
    ``hidden_dim`` H that of the state; ``cell_type`` is ``"rnn"`` or ``"lstm"``, ``dtype`` float32 or
    float64.

    ``params`` holds W_embed (V,W), W_proj (D,H), b_proj (H,), Wx (W,mH), Wh (H,mH), b (mH,), W_vocab (H,V),
    b_vocab (V,), with m = 4 for an LSTM and 1 for an RNN, drawn from NumPy's global generator. They may be
    replaced at any time, by arrays of another real type too: their common type is the one computed in.
    ``feature_pca`` is the :class:`fastrnn.data.PCA` that made the features, or None.

    Raises ``ValueError`` for another cell type or dtype, a vocabulary without ``<NULL>``, or a size below 1.
    """

    def __init__(
        self,
        word_to_idx: dict[str, int],
        input_dim: int = 512,
        wordvec_dim: int = 128,
        hidden_dim: int = 128,
        cell_type: str = "rnn",
        dtype: DTypeLike = np.float32,
    ) -> None:
        if cell_type not in _GATES:
            raise ValueError(f"cell_type: expected 'rnn' or 'lstm', got {cell_type!r}")
        if np.dtype(dtype) not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise ValueError(f"dtype: expected float32 or float64, got {np.dtype(dtype)}")
        if "<NULL>" not in word_to_idx:
            raise ValueError("word_to_idx: expected an entry '<NULL>'")
        for name, size in (
            ("input_dim", input_dim),
            ("wordvec_dim", wordvec_dim),
            ("hidden_dim", hidden_dim),
        ):
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        self.cell_type = cell_type
        self.dtype = dtype
        self.word_to_idx = word_to_idx
        self.idx_to_word = {i: word for word, i in word_to_idx.items()}
        self.feature_pca: PCA | None = None
        self._null = word_to_idx["<NULL>"]
        self._start = word_to_idx.get("<START>")
        self._end = word_to_idx.get("<END>")

        V, D, W, H, m = len(word_to_idx), input_dim, wordvec_dim, hidden_dim, _GATES[cell_type]
        params = {
            "W_embed": np.random.randn(V, W) / 100,
            "W_proj": np.random.randn(D, H) / np.sqrt(D),
            "b_proj": np.zeros(H),
            "Wx": np.random.randn(W, m * H) / np.sqrt(W),
            "Wh": np.random.randn(H, m * H) / np.sqrt(H),
            "b": np.zeros(m * H),
            "W_vocab": np.random.randn(H, V) / np.sqrt(H),
            "b_vocab": np.zeros(V),
        }
        self.params: dict[str, Array] = {name: w.astype(dtype) for name, w in params.items()}

    # -----------------------------------------------------------------------------------------------
    # Training

    def loss(
        self,
        features: ArrayLike,
        captions: ArrayLike,
        *,
        dropout: Dropout | None = None,
        count: int | None = None,
        into: Mapping[str, Array] | None = None,
    ) -> tuple[float, dict[str, Array]]:
        """Loss of captions (N,T) for image features (N,D), and its gradient for every parameter.

        The words are ``captions[:, :-1]``, the targets ``captions[:, 1:]``; targets that are NULL do not
        count. The loss is summed over the targets and divided by N, or by ``count`` where these captions are
        a share of that many. ``into`` are the arrays for the gradients, C-contiguous and of the type that is
        computed in; without them they are one new piece of memory: who keeps one of them keeps all, unless
        it is copied.

        Raises ``ValueError`` for shapes that do not fit, no captions, or features that are not finite;
        ``IndexError`` for a token outside the vocabulary.
        """
        params, features, batch = self._batch(features, captions)
        kernels, work = backend.kernels_and_work()
        of_words = of_outputs = None
        if dropout is not None and dropout.words:
            V, E = params["W_embed"].shape
            of_words = dropout.of_words(V, E, features.dtype)[batch.words]
        run = self._run(params, features, batch, of_words)
        h = run.h
        if dropout is not None and dropout.outputs:
            N, T = np.shape(captions)
            every = dropout.of_outputs(N, T - 1, h.shape[1], h.dtype)
            of_outputs = every[batch.packed.positions]
            h = h * of_outputs
        if into is None:
            each = in_one_piece(fresh_memory, h.dtype, *(params[name].shape for name in params))
            grads = dict(zip(params, each, strict=True))
        else:
            grads = self._checked_gradients(into, params)
        (dh,) = in_one_piece(backend.kept_memory("dh"), h.dtype, h.shape)
        loss = kernels.vocab_loss(
            h, params["W_vocab"], params["b_vocab"], batch.targets, batch.mask,
            1 / (len(features) if count is None else count),
            dh, grads["W_vocab"], grads["b_vocab"], work,
        )  # fmt: skip
        if of_outputs is not None:
            dh *= of_outputs
        d = recurrence.backward(dh, None, run, (grads["Wx"], grads["Wh"], grads["b"]))
        dx = d.dx if of_words is None else d.dx * of_words
        kernels.embedding_backward(batch.words, dx, grads["W_embed"], work)
        kernels.affine_backward(
            d.dh0, features, params["W_proj"], None, grads["W_proj"], grads["b_proj"], work
        )
        return loss, grads

    def evaluate_loss(self, features: ArrayLike, captions: ArrayLike) -> float:
        """The loss alone, at a third of the work. Takes and raises what :meth:`loss` does."""
        params, features, batch = self._batch(features, captions)
        run = self._run(params, features, batch, None, backward_follows=False)
        kernels, work = backend.kernels_and_work()
        return kernels.vocab_loss(
            run.h, params["W_vocab"], params["b_vocab"], batch.targets, batch.mask, 1 / len(features),
            None, None, None, work,
        )  # fmt: skip

    def _batch(self, features: ArrayLike, captions: ArrayLike) -> tuple[dict[str, Array], Array, _Batch]:
        """Parameters and features (N,D) as the kernels want them, the latter sorted, and packed captions."""
        params = self._checked_params()
        V, D = len(params["W_embed"]), len(params["W_proj"])
        features = self._checked_features(features, D, params["Wx"].dtype)
        given = tokens("captions", captions, V)
        if given.ndim != 2 or len(given) != len(features) or 0 in given.shape:
            raise ValueError(
                f"captions: expected shape (N,T) with N={len(features)} and T > 0, got {given.shape}"
            )
        inputs, targets = given[:, :-1], given[:, 1:]
        mask = targets != self._null
        T = inputs.shape[1]
        lengths = np.max(mask * np.arange(1, T + 1), axis=1, initial=0)  # through the last target that counts
        packed = recurrence.pack(lengths, T)
        words, rows = np.unique(inputs.reshape(-1)[packed.positions], return_inverse=True)
        return (
            params,
            features[packed.order],
            _Batch(
                packed,
                words,
                rows,
                targets.reshape(-1)[packed.positions],
                mask.reshape(-1)[packed.positions].astype(features.dtype),
            ),
        )

    def _run(
        self,
        params: dict[str, Array],
        features: Array,
        batch: _Batch,
        of_words: Array | None,
        *,
        backward_follows: bool = True,
    ) -> recurrence.Run:
        """Forward through the recurrent layer; ``of_words`` (U,E) are dropout's factors for its inputs."""
        h0 = self._initial_state(params, features)
        x = np.empty((len(batch.words), params["W_embed"].shape[1]), h0.dtype)
        backend.kernels().embedding_forward(batch.words, params["W_embed"], x)
        if of_words is not None:
            x *= of_words
        c0 = np.zeros_like(h0) if self.cell_type == "lstm" else None
        return recurrence.forward(
            x, batch.rows, batch.packed.batch_sizes, h0, c0, params["Wx"], params["Wh"], params["b"],
            backward_follows=backward_follows, memory=backend.kept_memory("activations"),
        )  # fmt: skip

    def _initial_state(self, params: dict[str, Array], features: Array) -> Array:
        h0 = np.empty((len(features), len(params["Wh"])), features.dtype)
        kernels, work = backend.kernels_and_work()
        kernels.affine_forward(features, params["W_proj"], params["b_proj"], h0, work)
        return h0

    def _checked_params(self) -> dict[str, Array]:
        m = "" if self.cell_type == "rnn" else "4"
        names = ("W_embed", "W_proj", "b_proj", "Wx", "Wh", "b", "W_vocab", "b_vocab")
        if missing := set(names) - self.params.keys():
            raise ValueError(f"params: {', '.join(sorted(missing))} missing")
        arrays, _ = reals(
            f"W_embed(V,W) W_proj(D,H) b_proj(H) Wx(W,{m}H) Wh(H,{m}H) b({m}H) W_vocab(H,V) b_vocab(V)",
            *(self.params[name] for name in names),
        )
        return dict(zip(names, arrays, strict=True))

    @staticmethod
    def _checked_gradients(into: Mapping[str, Array], params: dict[str, Array]) -> dict[str, Array]:
        if missing := params.keys() - into.keys():
            raise ValueError(f"into: {', '.join(sorted(missing))} missing")
        for name, w in params.items():
            a = into[name]
            if a.shape != w.shape or a.dtype != w.dtype or not a.flags.c_contiguous or not a.flags.writeable:
                raise ValueError(
                    f"into[{name!r}]: expected a C-contiguous array to write to, {w.shape} {w.dtype}, got "
                    f"{a.shape} {a.dtype}"
                )
        return {name: into[name] for name in params}

    @staticmethod
    def _checked_features(features: ArrayLike, D: int, dtype: Any) -> Array:
        (given,), _ = reals("features(N,D)", features)
        if given.shape[1] != D or len(given) == 0:
            raise ValueError(f"features: expected shape (N,D) with D={D} and N > 0, got {given.shape}")
        with np.errstate(over="ignore"):
            converted = given.astype(dtype, copy=False)
        finite = np.isfinite(converted).all(axis=1)
        if not finite.all():
            raise ValueError(f"features: row {np.argmin(finite)} has NaN or infinite values, as {dtype}")
        return converted

    # -----------------------------------------------------------------------------------------------
    # Captions

    def sample(self, features: ArrayLike, max_length: int = 30) -> Array:
        """Write a caption for each of the image features (N,D), always taking the likeliest next word.

        Returns tokens (N,max_length) int32, the first after START; what follows END means nothing.
        Raises ``ValueError`` without ``<START>`` in the vocabulary, and as :meth:`loss` does.
        """
        if self._start is None:
            raise ValueError("word_to_idx: expected an entry '<START>' to begin a caption with")
        length = int(integers("max_length", max_length))
        if length < 0:
            raise ValueError(f"max_length: expected at least 0, got {max_length}")
        params = self._checked_params()
        Wx, Wh, b = params["Wx"], params["Wh"], params["b"]
        features = self._checked_features(features, len(params["W_proj"]), Wx.dtype)
        first = tokens("word_to_idx['<START>']", np.full(len(features), self._start), len(params["W_embed"]))
        kernels, work = backend.kernels_and_work()
        h = self._initial_state(params, features)
        c = np.zeros_like(h)

        Wh = _packed(kernels, "Wh", Wh, _GATES[self.cell_type])
        W_vocab = _packed(kernels, "W_vocab", params["W_vocab"], 1)
        inputs = _ProjectedWords(kernels, work, params["W_embed"], Wx, b)
        next_h, next_c = np.empty_like(h), np.empty_like(c)
        scores = np.empty((len(h), len(params["b_vocab"])), Wx.dtype)

        def step(words: Array) -> Array:
            nonlocal h, c, next_h, next_c
            a, rows = inputs.of(words)
            if self.cell_type == "rnn":
                kernels.rnn_step(a, rows, h, Wh, next_h, work)
            else:
                kernels.lstm_step(a, rows, h, c, Wh, next_h, next_c, work)
                c, next_c = next_c, c
            h, next_h = next_h, h
            kernels.affine_forward(h, W_vocab, params["b_vocab"], scores, work)
            return scores

        return decoding.greedy(step, first, length)

    # -----------------------------------------------------------------------------------------------
    # Files

    def save(self, path: StrPath) -> None:
        """Write parameters, vocabulary, cell type, dtype and feature PCA to a safetensors file.

        The file appears whole or not at all. Raises ``OSError`` where it cannot be written.
        """
        arrays = {f"params.{name}": real(name, w) for name, w in self.params.items()}
        arrays = {name: w.astype(real_type(w), copy=False) for name, w in arrays.items()}
        if self.feature_pca is not None:
            arrays |= {f"feature_pca.{name}": a for name, a in self.feature_pca._asdict().items()}
        metadata = {
            "format": _FORMAT,
            "cell_type": self.cell_type,
            "dtype": np.dtype(self.dtype).name,
            "word_to_idx": json.dumps({word: int(i) for word, i in self.word_to_idx.items()}),
        }
        files.write_tensors(path, arrays, metadata)

    @classmethod
    def load(cls, path: StrPath) -> Self:
        """Read a model that :meth:`save` wrote, without drawing from any random generator.

        Raises ``FileNotFoundError``, or ``ValueError`` naming the file if it holds no such model.
        """
        arrays, metadata = files.read_tensors(path)
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{path}: expected a model saved as {_FORMAT!r}, got {metadata.get('format')!r}")
        try:
            groups: dict[str, dict[str, Array]] = {"params": {}, "feature_pca": {}}
            for name, array in arrays.items():
                group, _, key = name.partition(".")
                groups[group][key] = array
            word_to_idx, dtype = json.loads(metadata["word_to_idx"]), np.dtype(metadata["dtype"]).type
            state = np.random.get_state()
            model = cls(word_to_idx, 1, 1, 1, metadata["cell_type"], dtype)
            np.random.set_state(state)
            model.params = {name: groups["params"].pop(name) for name in model.params}
            model._checked_params()
            if groups["params"]:
                raise ValueError(f"unknown parameters {', '.join(groups['params'])}")
            if len(model.params["W_embed"]) != len(word_to_idx):
                raise ValueError(f"{len(model.params['W_embed'])} word vectors for {len(word_to_idx)} words")
            if groups["feature_pca"]:
                model.feature_pca = PCA(**groups["feature_pca"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a whole model: {error}") from error
        return model
