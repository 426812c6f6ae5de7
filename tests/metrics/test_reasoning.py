"""MMMU's and MathVista's rules, OCRBench's, MMStar's and HallusionBench's on rows made by hand, as the official
evaluations score them."""

from __future__ import annotations

import random

import pytest

from prunekit.data.example import Example
from prunekit.metrics import corpus_metrics, metric
from prunekit.metrics.reasoning import last_letter

TWO = ("a red dog", "the blue cat")


def score(name: str, prediction: str, *answers: str, choices: tuple[str, ...] = (), own: str = "0") -> float:
    return metric(name).score(prediction, Example(own, "image", "task", "question", answers, choices=choices))


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("B", "B"),
        ("(A)", "A"),
        ("B.", "B"),
        ("'A'", "A"),
        ("B. the blue cat", "B"),
        ("A or B", "B"),  # the last one counts
        ("(A) is wrong, (B) is right", "B"),
        ("(A), not B ", "A"),  # brackets come before bare letters
        ("see A.1, B.2", "A"),  # neither stands alone: the first
        ("I would say that it is the blue cat", "B"),
        ("the blue cat", None),  # five words and no more: not read; the official script draws a letter
        ("a red dog is what I see there", "A"),
        ("nothing of the kind, it seems to me", None),
        ("", None),
    ],
)
def test_the_letter_named_last(prediction, letter):
    assert last_letter(prediction, TWO) == letter
    assert score("mmmu", prediction, "B", choices=TWO) == float(letter == "B")


@pytest.mark.parametrize(
    ("prediction", "answers", "right"),
    [
        ("4", ("4",), 1),
        ("The result is 4.0", ("4",), 1),
        ("x = 2 + 2 = 4", ("4",), 1),
        ("The total is 1,234 dollars.", ("1234",), 1),
        ("so 3.14159", ("3.14",), 1),  # two decimals
        ("1.5e3", ("1500",), 1),
        ("It costs $6.50", ("6.5",), 1),
        ("4cm", ("4",), 0),  # a unit that touches the number
        ("4 cm", ("4",), 1),
        ("The answer is Paris", ("paris",), 1),
        ("The answer is the city of Paris", ("London", "Paris"), 1),  # one of several, within the text
        ("Paris is the answer", ("London",), 0),
        ("5 or so", ("4",), 0),
        ("forty", ("40",), 0),
        ("point b is it", ("b",), 0),  # what comes after "is " is all that is read
        ("the answer is b or c", ("b",), 1),
        ("the answer is about", ("b",), 0),  # a letter within a word
        ("", ("4",), 0),
        ("is", ("4",), 0),
    ],
)
def test_open_answers(prediction, answers, right):
    assert score("mmmu", prediction, *answers) == right


def test_any_number_is_read_where_it_ends_a_sentence():
    rng = random.Random(11)
    for _ in range(100):
        number = rng.choice((rng.randint(-9999, 9999), round(rng.uniform(-99, 99), 2)))
        assert score("mmmu", f"Therefore the value is {number}.", str(number)) == 1
        assert score("mmmu", f"Therefore the value is {number + 1:.2f}.", str(number)) == 0


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("14", "14", 1),
        ("The number missing in the sequence is 14.", "14", 1),
        ("There are 3 rows of 5, that is 15 in all", "15", 1),
        ("The answer is 15, for there are 3 rows", "15", 1),
        ("Answer: 15 (3 rows)", "15", 1),
        ("14.7", "14", 1),  # the whole part, as the official script has it
        ("-3", "-3", 1),
        ("1,200", "1200", 1),
        ("Luca needs $1.45 to buy them.", "1.45", 1),
        ("about 0.64 of them", "0.6", 1),  # one decimal
        ("0.66", "0.6", 0),
        ("12 cm", "12", 1),
        ("50%", "50", 1),
        ("fourteen", "14", 0),
        ("", "14", 0),
        ("between 2007 and 2008: [2007, 2008]", "[2007, 2008]", 1),
        ("[2007,2008]", "[2007, 2008]", 1),
        ("[2007, 2009]", "[2007, 2008]", 0),
        ("2007 and 2008", "[2007, 2008]", 0),
        ("[2007, oops", "[2007, 2008]", 0),
    ],
)
def test_mathvista_answers(prediction, answer, right):
    assert score("mathvista", prediction, answer) == right


def test_mathvista_options():
    assert score("mathvista", "The correct answer is (B) 8/11.", "B", choices=("3/11", "8/11")) == 1
    assert score("mathvista", "3/11", "B", choices=("3/11", "8/11")) == 0


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("A", 1), ("a", 1), ("(A) one", 1), ("Option A", 1), ("The answer is A.", 1), ("A: one", 1), ("apple", 1),
        ("The answer is (A)", 0), ("It is A", 0), ("B", 0), ("", 0),
    ],
)  # fmt: skip
def test_an_answer_that_begins_with_the_letter(prediction, right):
    assert score("first_letter", prediction, "A") == right


def test_an_answer_that_stands_in_the_text():
    assert score("ocrbench", "It says\nCentre.", "CENTRE") == score("ocrbench", "b", "a", "B") == 1
    assert score("ocrbench", "cent re", "centre") == score("ocrbench", "", "centre") == 0
    formula = "Handwritten Mathematical Expression Recognition#1"
    assert score("ocrbench", "x ^ {2}\n= Y", "x^{2} = Y", own=formula) == 1
    assert score("ocrbench", "x^{2}=y", "x^{2} = Y", own=formula) == 0


def test_real_world_answers():
    assert score("choice_or_vqa", "B", "B", choices=("Left.", "Right.")) == 1
    assert score("choice_or_vqa", "Right", "B", choices=("Left.", "Right.")) == 1
    assert score("choice_or_vqa", "Two.", "2") == score("choice_or_vqa", "the stop sign", "Stop sign") == 1
    assert score("choice_or_vqa", "3", "2") == 0


def test_hallusionbench_by_answer_question_and_figure():
    right = {"VD/map/0/1/0": 1, "VD/map/0/1/1": 0, "VD/map/0/2/0": 1, "VD/map/0/2/1": 1, "VS/map/0/1/0": 1}
    rows = [
        {"id": own, "task": "t", "answers": ["yes"], "prediction": "yes", "correct": good, "dense_prediction": "",
         "dense_correct": 0}
        for own, good in right.items()
    ]  # fmt: skip
    totals = corpus_metrics("hallusion", rows)
    # Questions: VD 0 right about both figures, VD 1 wrong about one, VS 0 right. Figures: VD 1 has a wrong answer.
    assert totals["extra"] == {"aAcc": 0.8, "qAcc": pytest.approx(2 / 3), "fAcc": pytest.approx(2 / 3)}
    assert set(totals["dense_extra"].values()) == {0.0}


def test_ocrbench_counts_right_answers():
    rows = [
        {"id": f"{kind}#{n}", "task": "t", "answers": ["a"], "prediction": "a", "correct": good,
         "dense_prediction": "a", "dense_correct": 1}
        for n, (kind, good) in enumerate((("Digit", 1), ("Digit", 0), ("Doc", 1)))
    ]  # fmt: skip
    assert corpus_metrics("ocrbench", rows)["extra"] == {"score": 2.0, "accuracy/Digit": 0.5, "accuracy/Doc": 1.0}
