"""How good captions are. sacrebleu (extra ``eval``) is imported where it is used."""

from collections.abc import Sequence
from typing import Any, NamedTuple

BLEU_PROTOCOL = (
    "corpus BLEU over tokens [a-z]+ after lower-casing, all references of each image, closest reference "
    "length, no smoothing; <UNK> in an output is a wrong word"
)


class Bleu(NamedTuple):
    """Corpus BLEU (Papineni et al., ACL 2002), from 0 to 1."""

    bleu: list[float]  # BLEU-1 to BLEU-4
    brevity_penalty: float
    output_words: int
    reference_words: int  # of the reference that is closest in length to each output


def load_bleu() -> Any:
    """sacrebleu's BLEU class. Raises ``ImportError`` with the remedy where it is missing."""
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise ImportError("BLEU needs sacrebleu: pip install 'fastrnn[eval]'") from error
    return BLEU


def corpus_bleu(outputs: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Bleu:
    """BLEU-1 to BLEU-4 of one output, as words, per image against all references of that image.

    Raises ``ImportError`` without sacrebleu and ``ValueError`` where an image has no reference.
    """
    BLEU = load_bleu()
    if len(outputs) != len(references) or not all(references) or not outputs:
        raise ValueError("references: expected at least one for every output, and at least one output")
    hypotheses = [" ".join(words) for words in outputs]
    most = max(len(of_image) for of_image in references)
    streams = [  # sacrebleu wants the first reference of every image, then the second, ..., None for missing
        [" ".join(of_image[i]) if i < len(of_image) else None for of_image in references] for i in range(most)
    ]
    scores = [
        BLEU(tokenize="none", smooth_method="none", force=True, max_ngram_order=order).corpus_score(
            hypotheses, streams
        )
        for order in (1, 2, 3, 4)
    ]
    return Bleu([score.score / 100 for score in scores], scores[0].bp, scores[0].sys_len, scores[0].ref_len)
