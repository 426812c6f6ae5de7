"""Questions for training: drawn from scenes, packed on their images, and how many were answered right."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import PreTrainedTokenizerFast

from prunekit.data.extra import lengthen
from prunekit.data.questions import Question, questions
from prunekit.data.scene import Scene
from prunekit.data.words import TASKS, WHICH
from tools.embedded.lessons import LESSONS, lessons
from tools.embedded.packing import IGNORE, Asked, Packed, encode, pack
from tools.embedded.processor import USER

ASKED = (*TASKS, "comparison", *LESSONS)
CHUNK, CHUNKS = 48, 8  # text positions of a chunk, chunks of a row
DRAWN = 64  # questions drawn for a row; what does not fit is left out
REPEATED = {"attribute": 2, "position": 2, "text": 3}  # tasks with few questions a scene: several phrasings of each


@dataclass(frozen=True)
class Forms:
    """Shares of the questions that come behind filler sentences, and behind another question and its answer."""

    long: float = 0.0
    dialogue: float = 0.0


class Asker:
    """Draws questions and packs them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, forms: Forms = Forms()) -> None:
        self.tokenizer, self.forms = tokenizer, forms
        self.user = tokenizer.convert_tokens_to_ids(USER)
        self._encoded = lru_cache(maxsize=200_000)(self._encode)

    def _encode(self, task: str, text: str, answer: str) -> Asked:
        return encode(self.tokenizer, [(task, text, answer)])[0]

    def rows(self, shown: Sequence[Sequence[Scene]], rng: random.Random, weights: dict[str, float]) -> Packed:
        """Fresh questions about each row's scenes, packed; ``weights`` by task."""
        return pack([self._row(scenes, rng, weights) for scenes in shown], CHUNKS, CHUNK, self.tokenizer.pad_token_id)

    def _row(self, scenes: Sequence[Scene], rng: random.Random, weights: dict[str, float]) -> list[Asked]:
        which = WHICH if len(scenes) > 1 else ("",)
        drawn = [(q, place) for scene, place in zip(scenes, which, strict=True) for q in draw(scene, rng, weights)]
        rng.shuffle(drawn)
        asked = [self._asked(question, place, rng) for question, place in drawn]
        return [self._behind(one, rng.choice(asked), rng) for one in asked]

    def _asked(self, question: Question, place: str, rng: random.Random) -> Asked:
        text = f"{question.text} {place}" if place else question.text
        if self.forms.long and rng.random() < self.forms.long:
            text = lengthen(text, rng, rng.randint(1, 3))
        return self._encoded(question.task, text, question.answers[0])

    def _behind(self, asked: Asked, first: Asked, rng: random.Random) -> Asked:
        """Now and then as the second turn of a dialogue."""
        if not self.forms.dialogue or rng.random() >= self.forms.dialogue:
            return asked
        return Asked(asked.task, (*first.prompt, *first.answer, self.user, *asked.prompt), asked.answer)


def draw(scene: Scene, rng: random.Random, weights: dict[str, float]) -> list[Question]:
    """DRAWN different questions about a scene: tasks by weight, within a task each key as likely as another."""
    by_task: dict[str, dict[str, list[Question]]] = {}
    for task in (task for task, weight in weights.items() if weight):
        by_key: dict[str, list[Question]] = defaultdict(list)
        for _ in range(REPEATED.get(task, 1)):
            for question in lessons(scene, task, rng) if task in LESSONS else questions(scene, task, rng):
                by_key[question.key].append(question)
        if by_key:
            by_task[task] = by_key
    found: dict[str, Question] = {}
    tasks = list(by_task)
    for task in rng.choices(tasks, [weights[task] for task in tasks], k=DRAWN):
        keys = list(by_task[task])
        odds = [int(key[-1]) if task == "count" else 1 for key in keys]  # higher counts stand in fewer scenes
        question = rng.choice(by_task[task][rng.choices(keys, odds)[0]])
        found.setdefault(question.text, question)
    return list(found.values())


def answer_right(logits: torch.Tensor, packed: Packed) -> list[tuple[str, bool]]:
    """Whether the most likely token is right at every place of an answer: (task, right) of each question.

    ``logits`` [n, V] are those of the places that have labels, in order. As the places follow one another, this is
    the same as greedy generation giving exactly the answer.
    """
    asked = packed.labels != IGNORE
    wrong = torch.zeros_like(asked)
    wrong[asked] = logits.argmax(-1) != packed.labels[asked]
    found = []
    for row, tasks in enumerate(packed.tasks):
        missed = set(packed.segment[row][wrong[row]].tolist())
        found += [(task, index not in missed) for index, task in enumerate(tasks)]
    return found


def early_labels(packed: Packed) -> torch.Tensor:
    """The answer's first token at the question's last word, one place before the assistant's mark: [B, C, T]."""
    first = packed.prompt & (packed.labels != IGNORE)
    labels = torch.full_like(packed.labels, IGNORE)
    labels[..., :-1] = torch.where(first, packed.labels, IGNORE)[..., 1:]
    return labels


def accuracy_by_task(found: Sequence[tuple[str, bool]]) -> dict[str, float]:
    """Share right in each task."""
    by_task: dict[str, list[bool]] = defaultdict(list)
    for task, right in found:
        by_task[task].append(right)
    return {task: sum(by_task[task]) / len(by_task[task]) for task in ASKED if task in by_task}
