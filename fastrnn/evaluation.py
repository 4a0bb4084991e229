"""What a model is worth on a split: its loss, its captions and their BLEU. Ranks share the work."""

from collections.abc import Callable, Sequence

import numpy as np
from tqdm.auto import tqdm

from fastrnn.arrays import Array
from fastrnn.captioning import CaptioningRNN
from fastrnn.data.coco import Split, read_ahead
from fastrnn.data.prepare import words
from fastrnn.distributed import Ranks
from fastrnn.metrics import Bleu, corpus_bleu

BATCH = 250  # captions or images at a time
MAX_LENGTH = 30  # words of a caption


def mean_loss(
    model: CaptioningRNN,
    split: Split,
    ranks: Ranks | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: bool = False,
) -> float | None:
    """The loss per caption over a whole split, to the last bit the same on any number of ranks.

    None where ``stop``, asked before each minibatch, ended it.
    """
    batches = split.epoch(BATCH)
    mine = range(len(batches))[_share(ranks, len(batches))]
    losses = np.zeros(len(batches) + 1)  # of each minibatch; at the end, how many ranks were stopped
    batch_of = read_ahead(split.read, [batches[i] for i in mine])
    with tqdm(total=len(mine), desc="val loss", leave=False, disable=not progress) as bar:
        for i, (features, captions, _) in zip(mine, batch_of, strict=True):
            if stop():
                losses[-1] = 1
                break
            losses[i] = model.evaluate_loss(features, captions) * len(captions)
            bar.update()
    if ranks is not None:
        ranks.sum(losses)
    return None if losses[-1] else float(sum(losses[:-1].tolist())) / len(split)


def captions_of(
    model: CaptioningRNN,
    features: Array,
    idx_to_word: Sequence[str],
    ranks: Ranks | None = None,
    progress: bool = False,
) -> list[list[str]]:
    """The words of a greedy caption for every image, without START, END and NULL."""
    starts = range(0, len(features), BATCH)[_share(ranks, -(-len(features) // BATCH))]
    tokens = np.zeros((len(features), MAX_LENGTH), np.int32)
    with tqdm(total=len(features), unit="image", desc="captions", leave=False, disable=not progress) as bar:
        for start in starts:
            part = features[start : start + BATCH]
            tokens[start : start + BATCH] = model.sample(part, MAX_LENGTH)
            bar.update(len(part))
    if ranks is not None:
        ranks.sum(tokens)
    captions = []
    for row in tokens.tolist():
        caption = [idx_to_word[token] for token in row]
        ended = caption[: caption.index("<END>")] if "<END>" in caption else caption
        captions.append([word for word in ended if word not in ("<NULL>", "<START>")])
    return captions


def bleu_of(outputs: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Bleu:
    """BLEU of one caption per image against all references of it; images without any do not count.

    Raises what :func:`corpus_bleu` does.
    """
    known = [(output, of_image) for output, of_image in zip(outputs, references, strict=True) if of_image]
    return corpus_bleu(
        [output for output, _ in known], [[words(text) for text in of_image] for _, of_image in known]
    )


def _share(ranks: Ranks | None, count: int) -> slice:
    return slice(count) if ranks is None else ranks.share(count)
