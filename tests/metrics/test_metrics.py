"""Metrics against worked examples from their definitions, and against slow versions written here."""

from __future__ import annotations

import functools
import itertools
import random
import string

import pytest

from prunekit.data.example import Example
from prunekit.metrics import METRICS, corpus_metrics, metric
from prunekit.metrics.choice import chosen, says
from prunekit.metrics.corpus import Side, circular
from prunekit.metrics.text import edit_distance, number, plain
from prunekit.metrics.vqa import CONTRACTIONS, normalise, soft_accuracy


def example(*answers: str, choices: tuple[str, ...] = ()) -> Example:
    return Example("0", "image", "task", "question", answers, choices=choices)


def score(name: str, prediction: str, *answers: str, choices: tuple[str, ...] = ()) -> float:
    return metric(name).score(prediction, example(*answers, choices=choices))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Dog", "dog"),  # lower case, articles
        ("an apple a day", "apple day"),
        ("two", "2"),
        ("None", "0"),
        ("ten zero", "10 0"),
        ("cat.", "cat"),  # periods, unless they are a decimal's
        ("3.14", "3.14"),
        ("U.S.A.", "usa"),
        ("100,978", "100978"),  # no space for a comma between digits
        ("red, white", "red white"),
        ("black/white", "black white"),  # other punctuation becomes a space
        ("left-handed", "left handed"),
        ("girl's", "girl's"),  # apostrophes and colons stay
        ("2:50 pm", "2:50 pm"),
        ("dont", "don't"),
        ("youre", "you're"),
        ("well", "well"),  # a word of its own
        ("what\n is\tit", "what is it"),
    ],
)
def test_vqa_answers_are_normalised_as_the_evaluation_says(answer, expected):
    assert normalise(answer) == expected


def test_contractions_are_their_words_without_the_apostrophe():
    assert all(word == spelt.replace("'", "") != spelt for word, spelt in CONTRACTIONS.items())
    assert {"dont": "don't", "wont": "won't", "im": "i'm", "thats": "that's"}.items() <= CONTRACTIONS.items()


def slow_normalise(text: str) -> str:
    """The published steps one after another, character by character."""
    text = "".join(c if c not in "\n\t" else " " for c in text.lower()).strip()
    marks = set(';/[]"{}()=+\\_-><@`,?!')
    pairs = list(itertools.pairwise(text))
    in_number = any(b == "," and a.isdigit() and c.isdigit() for a, b, c in zip(text, text[1:], text[2:], strict=False))
    beside_space = {c for pair in pairs if " " in pair for c in pair}
    out = ""
    for place, c in enumerate(text):
        if c in marks:
            out += "" if in_number or c in beside_space else " "
        elif c == "." and not text[place + 1 : place + 2].isdigit():
            continue
        else:
            out += c
    numbers = "zero one two three four five six seven eight nine ten"
    words = []
    for word in out.split():
        word = "0" if word == "none" else word
        word = str(numbers.split().index(word)) if word in numbers.split() else word
        if word not in ("a", "an", "the"):
            words.append(CONTRACTIONS.get(word, word))
    return " ".join(words)


def test_normalising_equals_its_steps_one_by_one():
    rng = random.Random(4)
    pieces = ["the ", "a", "two", "dont", " ", ",", "1", "0", ".", "-", "/", "'", ":", "none", "!", "Cat", "(", ")"]
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 8)))
        assert normalise(text) == slow_normalise(text), text


@pytest.mark.parametrize(
    ("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)]
)
def test_vqa_accuracy_of_ten_answers(agreeing, expected):
    """The known values of the leave-one-out average: 30, 60, 90 and 100 % for one, two, three and four who agree."""
    answers = ["Yes."] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert score("vqa", "the yes", *answers) == pytest.approx(expected)


def test_vqa_accuracy_equals_the_average_over_who_is_left_out():
    rng = random.Random(0)
    for _ in range(300):
        answers = [rng.choice("abcd") for _ in range(rng.randint(2, 12))]
        each = []
        for left_out in range(len(answers)):
            others = answers[:left_out] + answers[left_out + 1 :]
            each.append(min(1.0, sum(other == "a" for other in others) / 3))
        assert soft_accuracy("a", answers) == pytest.approx(sum(each) / len(each))
    assert soft_accuracy("a", ["a"]) == 1 and soft_accuracy("a", ["b"]) == 0


def test_exact_matches():
    assert score("exact", " Cat ", "dog", "cat") == 1 and score("exact", "cat.", "cat") == 0
    assert score("exact_text", "Cat.", "cat") == 1 and score("exact_text", "the cat", "cat") == 0
    assert plain(" A  b,c! ") == "a bc"


def test_token_f1():
    assert score("token_f1", "a red car", "the red car") == pytest.approx(2 / 3)
    assert score("token_f1", "red", "red red") == pytest.approx(2 / 3)  # a word counts as often as it stands there
    assert score("token_f1", "blue", "red", "dark blue") == pytest.approx(2 / 3)  # the best answer
    assert score("token_f1", "", "red") == 0 and score("token_f1", "", "!") == 1


def slow_distance(first: str, second: str) -> int:
    @functools.cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        same = first[i - 1] == second[j - 1]
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (not same))

    return distance(len(first), len(second))


def test_edit_distance_equals_its_recursion():
    rng = random.Random(1)
    for _ in range(300):
        first, second = ("".join(rng.choices("abc", k=rng.randint(0, 8))) for _ in range(2))
        assert edit_distance(first, second) == slow_distance(first, second)
    assert edit_distance("kitten", "sitting") == 3


def test_anls():
    assert score("anls", "Hello", "hello") == 1
    assert score("anls", "helo", "hello") == pytest.approx(0.8)  # one of five
    assert score("anls", "abcd", "abxy") == 0.5 and score("anls", "abcd", "axyz") == 0
    assert score("anls", "abcde", "abcxy") == pytest.approx(0.6)
    assert score("anls", "coca cola", "pepsi", "coca  cola") == 1  # the best answer
    assert score("anls", "", "a") == 0


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("105", "100", True),  # 5 % exactly
        ("95", "100", True),
        ("105.1", "100", False),
        ("-10", "10", False),
        ("0.12", "12%", True),
        ("12%", "0.124", True),
        ("1,000", "1000", False),  # the official script knows no separators
        ("0", "0.0", False),  # nor has zero anything within 5 % of it: it is compared as text
        ("0", "0", True),
        ("0.001", "0", False),  # nothing but zero is within 5 % of zero
        ("Blue", "blue", True),
        ("blue.", "blue", False),
        ("nan", "nan", True),
        ("inf", "5", False),
        ("2014", "2000", True),  # years are numbers too: the metric's own weakness
    ],
)
def test_relaxed_accuracy(prediction, answer, right):
    assert score("relaxed", prediction, answer) == right


def test_numbers():
    assert number("1e3") == 1000 and number("5 %") == 0.05 and number("five") is None and number("") is None


OPTIONS = ("a dog", "a cat", "two dogs", "dog house")


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("B", "B"), ("b", "B"), ("(b)", "B"), ("B.", "B"), ("B) a cat", "B"), ("B. a cat", "B"), ("B: a cat", "B"),
        ("A. a dog", "A"), ("The answer is B.", "B"), ("The answer is A because it barks", "A"),
        ("Answer: (C)", "C"), ("option c", "C"), ("The correct option is b", "B"), ("I would say so (D)", "D"),
        ("B, because it purrs", "B"), ("It's D", "D"),
        ("a dog", "A"), ("A dog", "A"), ("the answer is a cat", "B"), ("it is a dog house", "D"),
        ("A cat", "B"),  # an article, not the letter
        ("two dogs and a cat", None), ("A, B", None), ("E", None), ("", None), ("none of them", None),
    ],
)  # fmt: skip
def test_the_choice_is_read_by_rules(prediction, letter):
    assert chosen(prediction, OPTIONS) == letter
    for answer in "ABCD":
        assert score("choice", prediction, answer, choices=OPTIONS) == (letter == answer)


def test_plain_letters_are_always_read():
    for count in range(2, 9):
        options = tuple(f"thing {i}" for i in range(count))
        for index, letter in enumerate(string.ascii_uppercase[:count]):
            for form in (letter, letter.lower(), f"({letter})", f"{letter}.", f"{letter}. {options[index]}",
                         f"The answer is {letter}.", options[index], f"It shows {options[index]}."):  # fmt: skip
                assert chosen(form, options) == letter, form


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"), ("yes.", "yes"), ("No, there is not", "no"), ("There is no dog. Yes", "no"),
        ("It is not", "no"), ("Yes, it is", "yes"), ("nothing", ""), ("", ""), ("Certainly", ""), ("note", ""),
    ],
)  # fmt: skip
def test_yes_and_no(text, said):
    assert says(text) == said
    assert score("yes_no", text, "Yes") == (said == "yes") and score("yes_no", text, "no") == (said == "no")


def test_auto_goes_by_the_row():
    assert score("auto", "B.", "B", choices=("x", "y")) == 1 and score("auto", "B.", "b") == 1
    assert score("auto", "y", "B", choices=("x", "y")) == 1 and score("auto", "y", "B") == 0


def row(name: str, task: str, answer: str, prediction: str, correct: float, dense: str = "", dense_correct: float = 0):
    return {
        "id": name, "task": task, "answers": [answer], "prediction": prediction, "correct": correct,
        "dense_prediction": dense, "dense_correct": dense_correct,
    }  # fmt: skip


def test_pope_counts_hits_per_split():
    rng = random.Random(2)
    rows = [
        row(
            str(i), rng.choice(["random", "popular"]), rng.choice(["yes", "no"]), rng.choice(["Yes", "no.", "maybe"]), 0
        )
        for i in range(200)
    ]
    found = corpus_metrics("pope", rows)["extra"]
    scores = []
    for task in ("random", "popular"):
        counts = {"hit": 0, "false": 0, "missed": 0, "yes": 0, "all": 0}
        for r in rows:
            if r["task"] == task:
                counts["all"] += 1
                counts["yes"] += r["prediction"] == "Yes"
                counts["hit"] += r["prediction"] == "Yes" and r["answers"] == ["yes"]
                counts["false"] += r["prediction"] == "Yes" and r["answers"] == ["no"]
                counts["missed"] += r["prediction"] != "Yes" and r["answers"] == ["yes"]
        scores.append(2 * counts["hit"] / (2 * counts["hit"] + counts["false"] + counts["missed"]))
        assert found[f"f1/{task}"] == pytest.approx(scores[-1])
        assert found[f"precision/{task}"] == pytest.approx(counts["hit"] / (counts["hit"] + counts["false"]))
        assert found[f"recall/{task}"] == pytest.approx(counts["hit"] / (counts["hit"] + counts["missed"]))
        assert found[f"yes_share/{task}"] == pytest.approx(counts["yes"] / counts["all"])
    assert found["f1"] == pytest.approx(sum(scores) / 2)


def test_mme_counts_questions_and_pairs():
    """Two images of a category: one pair right, one half right: acc 3/4, acc+ 1/2, score 125."""
    rows = [
        row("count/1.png#1", "count", "Yes", "Yes", 1, dense_correct=1),
        row("count/1.png#2", "count", "No", "No", 1, dense_correct=1),
        row("count/2.png#3", "count", "Yes", "Yes", 1, dense_correct=1),
        row("count/2.png#4", "count", "No", "Yes", 0, dense_correct=1),
        row("code_reasoning/1.png#5", "code_reasoning", "Yes", "No", 0),
        row("code_reasoning/1.png#6", "code_reasoning", "No", "No", 1),
    ]
    found = corpus_metrics("mme", rows)
    extra = found["extra"]
    assert (extra["acc/count"], extra["acc_plus/count"], extra["score/count"]) == (0.75, 0.5, 125.0)
    assert (extra["perception"], extra["cognition"], extra["total"]) == (125.0, 50.0, 175.0)
    assert found["dense_extra"]["perception"] == 200.0
    broken = corpus_metrics("mme", [*rows[:3], {**rows[3], "error": "cannot be read"}, *rows[4:]])["extra"]
    assert broken["acc/count"] == 1 and broken["acc_plus/count"] == 1  # of the pairs that are whole


def test_mmbench_wants_every_rotation():
    rows = [row(f"7#{r * 10**6 + 7}", "mmbench", "A", "A", int(r != 2)) for r in (2, 0, 1)]
    rows += [row(f"8#{r * 10**6 + 8}", "mmbench", "A", "A", 1) for r in (0, 1)]
    found = corpus_metrics("mmbench", rows)["extra"]
    assert found == {"circular": 0.5, "vanilla": 1.0}


def test_seed_per_question_type():
    rows = [
        row("type 1#1", "seed", "A", "A", 1),
        row("type 2#2", "seed", "A", "B", 0),
        row("type 2#3", "seed", "A", "A", 1),
    ]
    assert corpus_metrics("seed", rows)["extra"] == {"accuracy/type 1": 1.0, "accuracy/type 2": 0.5}


def test_metrics_without_numbers_over_all_add_nothing():
    assert corpus_metrics("vqa", [row("1", "t", "a", "a", 1)]) == {}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_gives_a_share_for_any_text(name):
    rng = random.Random(3)
    for _ in range(100):
        prediction = "".join(rng.choices("ab. ,YesNo%1()'\n", k=rng.randint(0, 12)))
        value = score(name, prediction, rng.choice("AB"), choices=("a", "b"))
        assert isinstance(value, float) and 0 <= value <= 1


def test_an_unknown_metric_is_named():
    with pytest.raises(ValueError, match=r"Unknown metric 'vqaa'\. Did you mean 'vqa'"):
        metric("vqaa")


def test_neither_yes_nor_no_is_wrong_whatever_the_answer():
    assert score("yes_no", "banana", "red") == score("yes_no", "yes", "red") == 0.0


def test_rotations_of_rows_that_have_none():
    rows = [Side("g", name, "task", ["yes"], "yes", 1.0) for name in ("first", "second")]
    assert circular(rows) == {"circular": 1.0, "vanilla": 1.0}
