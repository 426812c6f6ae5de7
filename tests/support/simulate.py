"""A tiny LLaVA run by hand: one sample, layer by layer, tokens in a Python list; methods decide by plain loops.

Nothing of prunekit is used. The model's own modules compute a layer; what a cut leaves is a shorter list.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from zoo.tiny import IMAGE, Batch

Scores = dict[int, float]


@dataclass
class Seen:
    """What one layer saw: names of its tokens (visual ones from 0 on, text None), what entered it, its attention."""

    names: list[int | None]
    text: list[bool]
    hidden: np.ndarray
    attention: np.ndarray


@dataclass
class Sample:
    """One sample on its way through the decoder."""

    model: torch.nn.Module
    ids: list[int]
    hidden: torch.Tensor  # [n, D]
    names: list[int | None]
    text: list[bool]
    places: list[int]
    seen: list[Seen] = field(default_factory=list)
    standing: list[set[int]] = field(default_factory=list)  # names after each cut
    drops: list[tuple] = field(default_factory=list)  # what each cut did, to do it again
    embeds: np.ndarray | None = None

    @property
    def visual(self) -> dict[int, int]:
        """Name -> place in the list."""
        return {name: place for place, name in enumerate(self.names) if name is not None}

    def drop(self, keep: set[int], added: dict[int, np.ndarray] | None = None, renumber: bool = False) -> None:
        """Leave the visual tokens of ``keep``; ``added`` come right behind the last visual one of those."""
        added = added or {}
        self.drops.append((keep, added, renumber))
        rows = [(i, None) for i, name in enumerate(self.names) if name is None or name in keep]
        last = max((at for at, (i, _) in enumerate(rows) if self.names[i] is not None), default=-1)
        new = [(None, name) for name in sorted(added)]
        rows = [*rows[: last + 1], *new, *rows[last + 1 :]]
        hidden = [self.hidden[i] if i is not None else torch.from_numpy(added[name]).float() for i, name in rows]
        where = self.visual
        self.places = [self.places[where[name] if i is None else i] for i, name in rows]
        self.text = [False if i is None else self.text[i] for i, _ in rows]
        self.names = [name if i is None else self.names[i] for i, name in rows]
        self.hidden = torch.stack(hidden)
        if renumber:
            self.places = list(range(len(rows)))
        self.standing.append(keep | set(added))


def start(model: torch.nn.Module, batch: Batch, b: int, more: tuple[int, ...] = ()) -> Sample:
    """Sample ``b`` of a batch, unpadded, with its image's features in place and the tokens ``more`` at its end."""
    ids = torch.cat([batch.ids[b][batch.mask[b]], torch.tensor(more, dtype=torch.long)])
    with torch.no_grad():
        features = model.get_image_features(batch.inputs["pixel_values"][b : b + 1])
        features = torch.cat(list(getattr(features, "pooler_output", features))).reshape(-1, model.lm_head.in_features)
        hidden = model.get_input_embeddings()(ids).clone()
    hidden[ids == IMAGE] = features
    first, count, names = ids.tolist().index(IMAGE), 0, []
    for token in ids.tolist():
        names.append(count if token == IMAGE else None)
        count += token == IMAGE
    text = [name is None and place > first for place, name in enumerate(names)]
    sample = Sample(model, ids.tolist(), hidden, names, text, list(range(len(names))))
    sample.embeds = hidden.double().numpy()
    return sample


def run(sample: Sample, cuts: dict[int, Callable[[Sample, int], None]]) -> np.ndarray:
    """Through all layers; ``cuts[layer]`` may shorten the sample before that layer. Logits of the last token [V]."""
    decoder = sample.model.model.language_model
    for index, layer in enumerate(decoder.layers):
        if index in cuts:
            cuts[index](sample, index)
        size = len(sample.names)
        mask = torch.zeros(size, size).masked_fill(
            ~torch.ones(size, size).tril().bool(), torch.finfo(torch.float32).min
        )
        places = torch.tensor(sample.places)[None]
        caught = {}
        hook = layer.self_attn.register_forward_hook(lambda m, a, out, caught=caught: caught.update(weights=out[1]))
        with torch.no_grad():
            rotary = decoder.rotary_emb(sample.hidden[None], places)
            out = layer(
                sample.hidden[None], attention_mask=mask[None, None], position_ids=places, position_embeddings=rotary
            )
        hook.remove()
        entered = sample.hidden.double().numpy()
        weights = caught["weights"][0].double().numpy()
        sample.seen.append(Seen(list(sample.names), list(sample.text), entered, weights))
        sample.hidden = (out[0] if isinstance(out, tuple) else out)[0]
    with torch.no_grad():
        return sample.model.lm_head(decoder.norm(sample.hidden))[-1].double().numpy()


def go_on(batch: Batch, b: int, prompt: Sample, layers: list[int], tokens: tuple[int, ...]) -> np.ndarray:
    """Logits [V] after ``tokens`` were generated: the whole sequence again, cut as its prompt was."""
    sample = start(prompt.model, batch, b, tokens)
    again = {layer: lambda s, _, d=drop: s.drop(*d) for layer, drop in zip(layers, prompt.drops, strict=True)}
    return run(sample, again)


def best(scores: Scores, count: int) -> set[int]:
    """The ``count`` highest; of equal ones the earlier."""
    return set(sorted(scores, key=lambda name: (-scores[name], name))[:count])


def share(ratio: float, total: int) -> int:
    """The house's rounding of a share."""
    return max(1, round(ratio * total))


def rows(seen: Seen, which: str) -> list[int]:
    """Places of a query set."""
    every = range(len(seen.names))
    return {"last": [len(seen.names) - 1], "all": list(every), "text": [i for i in every if seen.text[i]]}[which]


def received(matrix: np.ndarray, seen: Seen, queries: list[int], itself: bool = True) -> Scores:
    """Mean over the queries that can see a visual token (causal) of what they give it; ``matrix`` [n, n]."""
    found = {}
    for place, name in enumerate(seen.names):
        if name is not None:
            values = [matrix[q, place] for q in queries if q > place or (itself and q == place)]
            found[name] = sum(values) / len(values) if values else 0.0
    return found


def rotate(x: np.ndarray, places: list[int], theta: float = 10000.0) -> np.ndarray:
    """Rotary embedding of x [n, d]: pairs are (i, i + d/2)."""
    half = x.shape[1] // 2
    out = np.zeros_like(x)
    for row, place in enumerate(places):
        for i in range(half):
            angle = place / theta ** (2 * i / x.shape[1])
            c, s = np.cos(angle), np.sin(angle)
            out[row, i] = x[row, i] * c - x[row, i + half] * s
            out[row, i + half] = x[row, i + half] * c + x[row, i] * s
    return out


def recycle(x: dict[int, np.ndarray], scores: dict[int, float], count: int, mean: bool) -> dict[int, np.ndarray]:
    """Of the tokens ``x`` that go: int(.3n)+1 by score, density peaks, one token for each cluster."""
    pool = sorted(best(scores, max(count, min(len(x), int(0.3 * len(x)) + 1))))
    distance = {(a, b): np.linalg.norm(x[a] - x[b]) / math.sqrt(len(x[a])) for a in pool for b in pool}
    density = {}
    for a in pool:
        near = sorted(distance[a, b] for b in pool)[:count]
        density[a] = math.exp(-sum(d**2 for d in near) / len(near))
    peak = {}
    for i, a in enumerate(pool):
        denser = [b for j, b in enumerate(pool) if density[b] > density[a] or (density[b] == density[a] and j < i)]
        delta = min(distance[a, b] for b in denser) if denser else max(distance.values())
        peak[a] = density[a] * delta
    centres = sorted(best(peak, count))
    groups = {c: [c] for c in centres}
    for a in pool:
        if a not in centres:
            groups[min(centres, key=lambda c: (distance[a, c], c))].append(a)
    joined = {c: np.sum([x[m] for m in members], axis=0) for c, members in groups.items()}
    return {c: v / len(groups[c]) if mean else v for c, v in joined.items()}


def clusters(gone: int) -> int:
    return int((int(0.3 * gone) + 1) / 10) + 1
