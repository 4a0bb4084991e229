"""BLEU against the formula of Papineni et al. (ACL 2002), worked out by hand and by a plain counter."""

import math
from collections import Counter

import numpy as np
import pytest

from fastrnn.metrics import corpus_bleu


def plain_bleu(outputs, references, order):
    """The paper's formula: clipped n-gram precisions of the corpus, closest reference length."""
    matches, totals = [0] * order, [0] * order
    words = reference_words = 0
    for output, of_image in zip(outputs, references, strict=True):
        words += len(output)
        reference_words += min((abs(len(r) - len(output)), len(r)) for r in of_image)[1]
        for n in range(1, order + 1):
            grams = Counter(tuple(output[i : i + n]) for i in range(len(output) - n + 1))
            most = Counter()
            for r in of_image:
                most |= Counter(tuple(r[i : i + n]) for i in range(len(r) - n + 1))
            matches[n - 1] += (grams & most).total()
            totals[n - 1] += grams.total()
    penalty = min(1.0, math.exp(1 - reference_words / words))
    return penalty * math.exp(
        sum(math.log(m / t) for m, t in zip(matches, totals, strict=True)) / order
    ), penalty


def test_by_hand():
    """6 of 7 words are in a reference; the output is 1 word shorter than the closer reference."""
    references = [["the", "cat", "sits", "on", "the", "mat", "by", "a"], list("pqrstuvwxyz")]
    bleu = corpus_bleu([["a", "cat", "sits", "on", "the", "red", "mat"]], [references])
    penalty = math.exp(1 - 8 / 7)
    np.testing.assert_allclose(bleu.brevity_penalty, penalty)
    np.testing.assert_allclose(bleu.bleu[0], penalty * 6 / 7)
    assert (bleu.output_words, bleu.reference_words) == (7, 8)


def test_against_the_formula(rng):
    words = list("abcdef")
    draw = lambda: rng.choice(words, rng.integers(4, 9)).tolist()  # noqa: E731
    outputs = [draw() for _ in range(40)]
    references = [[draw() for _ in range(rng.integers(1, 6))] for _ in range(40)]
    bleu = corpus_bleu(outputs, references)
    for order in (1, 2, 3, 4):
        expected, penalty = plain_bleu(outputs, references, order)
        np.testing.assert_allclose(bleu.bleu[order - 1], expected, rtol=1e-6)
        np.testing.assert_allclose(bleu.brevity_penalty, penalty)


def test_an_unknown_word_is_a_wrong_word():
    references = [[["a", "dog", "runs", "unk"]]]
    assert corpus_bleu([["a", "<UNK>", "runs", "far"]], references).bleu[0] == pytest.approx(0.5)
    assert corpus_bleu([["<UNK>"] * 4], references).bleu[0] == 0


def test_nothing_is_smoothed():
    """Every word is right and no two in a row are: BLEU-2 is 0."""
    bleu = corpus_bleu([["a", "b", "c", "d"]], [[["d", "c", "b", "a"]]])
    assert bleu.bleu[:2] == pytest.approx([1, 0])


def test_no_words_at_all():
    assert corpus_bleu([[]], [[["a"]]]).bleu == [0, 0, 0, 0]


@pytest.mark.parametrize(("outputs", "references"), [([], []), ([["a"]], []), ([["a"]], [[]])])
def test_bad_input(outputs, references):
    with pytest.raises(ValueError, match="references: expected at least one"):
        corpus_bleu(outputs, references)
