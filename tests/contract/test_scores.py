"""What numbers mean: decided where it can't be otherwise, and the probabilities by formula."""

import numpy as np
import pytest

from clothing_contract import Output
from clothing_contract.scores import contradiction, decide, expanded, holding, probabilities, undecided

RANDOM = np.random.default_rng(2)


def softmax(x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


DISTRIBUTIONS = softmax(RANDOM.normal(0, 3, (3, 10)))
# An int8 head as LiteRT dequantises it: down to steps of 1/256, 255/256 at most.
QUANTISED = np.minimum(np.floor(DISTRIBUTIONS * 256), 255) / 256


def as_bfloat16(x):
    return (x.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize(
    ("scores", "labels", "kind"),
    [
        (np.array([[1.9, 0.3, -2.0]]), 3, "logits"),
        (np.array([[0.1, 0.3, 5.0]]), 3, "logits"),
        (np.array([[-3.2]]), 2, "logits"),
        (np.array([[7.0]]), 1, "logits"),
        (np.array([[0.2], [0.9], [0.0]]), 2, None),
        (np.array([[0.2], [0.9], [1.0]]), 1, None),
        (DISTRIBUTIONS, 10, "softmax"),
        (DISTRIBUTIONS.astype(np.float32), 10, "softmax"),
        (as_bfloat16(DISTRIBUTIONS), 10, "softmax"),
        (DISTRIBUTIONS.astype(np.float16), 10, "softmax"),
        (QUANTISED, 10, "softmax"),
        (np.array([[245, 0, 0, 0, 0, 0, 0, 0, 0, 0]]) / 256, 10, "softmax"),
        (np.array([[0.95, 0.9, 0.05]]), 3, None),
        (np.array([[0.5, 0.3, 0.2], [0.9, 0.8, 0.1]]), 3, None),
        (np.array([[0.0, 0.0, 0.0]]), 3, None),
        (np.array([[0.98, 0.01]]), 2, None),
    ],
)
def test_the_kind_is_decided_only_where_it_is_sure(scores, labels, kind):
    assert decide(scores, labels) == kind


@pytest.mark.parametrize(
    ("scores", "extreme", "kind"),
    [
        ([[0.2], [0.9]], [[1.0], [0.0]], "sigmoid"),
        ([[0.2], [0.9]], [[0.0], [0.0]], "sigmoid"),
        ([[0.2], [0.9]], [[1 - 1e-7], [1e-38]], "sigmoid"),
        ([[0.2], [0.9]], [[0.9975], [0.0]], None),
        ([[0.2], [0.9]], [[1.0], [1e-10]], None),
        ([[0.2], [0.9]], [[255 / 256], [0.0]], None),
        ([[0.0], [0.0]], [[0.0], [0.0]], None),
        ([[0.2], [0.9]], [[1.0], [-70.0]], "logits"),
        ([[0.5, 0.3, 0.2]], [[1.0, 0.0, 0.0]], "softmax"),
        ([[0.5, 0.3, 0.2]], [[1.0, 1.0, 0.0]], None),
        ([[0.5, 0.3, 0.2]], [[9.0, -8.0, 0.0]], "logits"),
        (np.ones((3, 100)) / 128, None, None),  # independent, in steps of 1/256, with a sum near 1
    ],
)
def test_numbers_far_from_a_photos_tell_probabilities_from_small_logits(scores, extreme, kind):
    assert decide(np.array(scores), np.shape(scores)[1], None if extreme is None else np.array(extreme)) == kind


def test_what_is_undecided_names_what_to_say():
    text = undecided(np.array([[0.95, 0.9, 0.05, 0, 0, 0]]))
    assert "0.95, 0.9, 0.05, 0, 0, …" in text
    assert "independent" in text
    assert "logits" in text
    assert "sigmoid (a probability) or logits" in undecided(np.array([[0.95]]))


def test_a_distribution_is_not_changed():
    assert np.array_equal(probabilities(QUANTISED, "softmax"), QUANTISED)


def test_logits_are_put_through_a_softmax():
    logits = RANDOM.normal(0, 300, (5, 7)).astype(np.float32)
    assert np.allclose(probabilities(logits, "logits"), softmax(logits.astype(np.float64)), atol=1e-12)
    assert np.array_equal(probabilities(logits[0], "logits"), probabilities(logits, "logits")[0])


def test_independent_probabilities_are_no_distribution():
    scores = np.array([[0.95, 0.9, 0.05]])
    assert np.array_equal(probabilities(scores, "independent"), scores)


@pytest.mark.parametrize("logit", [-800.0, -3.0, 0.0, 0.5, 3.0, 800.0])
def test_one_logit(logit):
    """For one label its sigmoid; for two the softmax of 0 and the logit, which is the same."""
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-logit))
    one = np.array([[logit]])
    assert probabilities(one, "logits")[0, 0] == pytest.approx(sigmoid)
    both = expanded(one, "logits", 2)
    assert both.tolist() == [[0.0, logit]]
    assert probabilities(both, "logits")[0] == pytest.approx([1 - sigmoid, sigmoid])


def test_one_sigmoid_for_two_labels_is_the_second_ones():
    found = expanded(np.array([[0.2], [0.9]], np.float32), "sigmoid", 2)
    assert found.dtype == np.float32
    assert np.allclose(found, [[0.8, 0.2], [0.1, 0.9]])
    assert np.allclose(probabilities(found, "sigmoid"), found)


def test_a_score_for_each_label_stays():
    for scores, labels in ((np.array([[0.2]]), 1), (np.array([[0.2, 0.8]]), 2), (np.array([[1.0, 2.0, 3.0]]), 3)):
        assert expanded(scores, "sigmoid", labels) is scores


@pytest.mark.parametrize(
    ("chances", "scores", "threshold", "held"),
    [
        ([0.3, 0.9, 0.6, 0.5], "independent", None, [1, 2]),
        ([0.3, 0.9, 0.6, 0.5], "independent", 0.25, [1, 2, 3, 0]),
        ([0.3, 0.9, 0.6, 0.5], "independent", 0.95, []),
        ([0.6, 0.4], "sigmoid", None, [0]),
        ([0.6, 0.4], "sigmoid", 0.35, [1]),  # less probable than the other, and above what was asked for
        ([0.5, 0.5], "sigmoid", None, [0]),
        ([0.4], "sigmoid", None, []),
        ([0.4], "sigmoid", 0.3, [0]),
        ([0.1, 0.9], "softmax", None, None),
        ([0.1, 0.9], "logits", None, None),
        ([0.1, 0.9], "auto", None, None),
    ],
)
def test_labels_above_the_threshold(chances, scores, threshold, held):
    assert holding(np.array(chances), Output(scores=scores, threshold=threshold)) == held


@pytest.mark.parametrize(
    ("scores", "kind", "words"),
    [
        ([[1.2, -0.3]], "softmax", "outside of 0 to 1"),
        ([[1.2]], "sigmoid", "logits are"),
        ([[3.0, 0.1]], "independent", "outside of 0 to 1"),
        ([[0.9, 0.8]], "softmax", "sum to 1.7, not 1: independent"),
    ],
)
def test_a_kind_that_the_numbers_contradict(scores, kind, words):
    assert words in contradiction(np.array(scores), kind)


@pytest.mark.parametrize(
    ("scores", "kind"),
    [(QUANTISED, "softmax"), ([[0.9, 0.8]], "independent"), ([[0.3]], "sigmoid"), ([[0.2, 0.1]], "logits")],
)
def test_a_kind_that_the_numbers_allow(scores, kind):
    assert contradiction(np.array(scores), kind) is None
