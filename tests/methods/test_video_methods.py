"""The methods of video against loops in NumPy, sample by sample, on fresh random clips of four families."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import prunekit
import zoo
from prunekit.families import make_family
from zoo.base import FAMILIES, VIDEO, make_batch
from zoo.llava_like import frames
from zoo.qwen_like import GRID, patches

SIZES = ((6, 8), (4, 4), (8, 4))  # of a frame in patches, for each sample; four of them are a token
CLIPS = {
    "qwen2_5_vl": patches(frames=6, sizes=SIZES, keys=GRID, token=VIDEO),
    "qwen3_vl": patches(frames=6, sizes=SIZES, keys=GRID, token=VIDEO, split_frames=True),
    "video_llava": frames(80, 8, 12),  # each of 8 frames begins with a CLS token
    "llava_onevision": FAMILIES["llava_onevision"].video if "llava_onevision" in FAMILIES else None,  # ends with one
}
ALL, ATTENTIVE = tuple(CLIPS), ("qwen2_5_vl", "qwen3_vl")


@dataclass
class Witness(prunekit.Scorer):
    """Notes what enters layer 0."""

    uses_places = True

    def score(self, view):
        vars(self).update(places=view.places, tokens=view.visual(view.hidden_states), alive=view.alive)
        return view.alive.float()


@dataclass
class Clip:
    """One sample as an oracle sees it: the frames' places among its visual tokens, and the rest of them."""

    count: int
    frames: list[list[int]]
    separators: list[int]
    tokens: np.ndarray

    def at(self, frame: int, place: int) -> np.ndarray:
        return self.tokens[self.frames[frame][place]]


@functools.cache
def model_of(name: str):
    return zoo.build(name)


def batch_of(name: str, padding: str, seed: int):
    """Longer clips than the zoo's own."""
    before = FAMILIES[name]
    FAMILIES[name] = dataclasses.replace(before, video=CLIPS[name])
    try:
        return make_batch(name, padding, seed, "video")
    finally:
        FAMILIES[name] = before


def clips_of(name: str, batch) -> list[Clip]:
    witness = Witness()
    with torch.no_grad(), prunekit.Pruner(witness, "single", "input")(model_of(name)):
        model_of(name)(**batch.inputs)
    places, clips = witness.places, []
    for b in range(len(places.row)):
        alive = [n for n in range(places.row.shape[1]) if witness.alive[b, n]]
        where = {n: [int(x[b, n]) for x in (places.frame, places.row, places.column)] for n in alive}
        shown = sorted((n for n in alive if where[n][1] >= 0), key=where.__getitem__)
        groups = [[n for n in shown if where[n][0] == t] for t in sorted({where[n][0] for n in shown})]
        separators = [n for n in alive if n not in shown]
        clips.append(Clip(len(alive), groups, separators, witness.tokens[b].double().numpy()))
    return clips


def pruned(pruner: prunekit.Pruner, name: str, batch):
    """The cut, and what entered layer 0 of each sample."""
    caught: list[torch.Tensor] = []
    layer = make_family(model_of(name)).decoder.layers[0]
    with torch.no_grad(), pruner(model_of(name)) as trace:
        handle = layer.input_layernorm.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
        try:
            model_of(name)(**batch.inputs)
        finally:
            handle.remove()
    return trace.cuts[0], caught[0].double().numpy()


def cases(*names: str):
    return pytest.mark.parametrize(("name", "padding"), [(n, p) for n in names for p in ("left", "right", "none")])


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def budget(clip: Clip, ratio: float) -> tuple[int, int]:
    """Of a clip's budget what patches get, and what separators get: all, but no more than half."""
    count = max(1, round(ratio * clip.count))
    between = min(len(clip.separators), count // 2)
    return count - between, between


def spaced(count: int, total: int) -> list[int]:
    return [n for n in range(total) if (n + 1) * count // total > n * count // total]


def with_separators(clip: Clip, patches: set[int], between: int) -> set[int]:
    return patches | {clip.separators[n] for n in spaced(between, len(clip.separators))}


def check_kept(cut, clips: list[Clip], expected) -> None:
    for b, clip in enumerate(clips):
        assert set(torch.where(cut.kept[b])[0].tolist()) == expected(clip), b


def shares(weights: list[float], total: int, limit: int) -> list[int]:
    """By weight, whole, none above the limit; what rounding leaves goes to the largest remainders."""
    counts, full = [0.0] * len(weights), set()
    while True:
        left = total - limit * len(full)
        weight = sum(w for g, w in enumerate(weights) if g not in full)
        counts = [limit if g in full else left * w / weight for g, w in enumerate(weights)]
        if not (new := {g for g, n in enumerate(counts) if n >= limit} - full):
            break
        full |= new
    whole = [math.floor(n + 1e-9) for n in counts]
    rest = {g: round((whole[g] - counts[g]) * 1e9) for g in range(len(counts)) if g not in full}
    order = sorted(rest, key=lambda g: (rest[g], g))
    for g in order[: total - sum(whole)]:
        whole[g] += 1
    return whole


@cases(*ALL)
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.9])
def test_evs(name, padding, ratio):
    batch = batch_of(name, padding, seed=1)
    clips = clips_of(name, batch)
    cut, _ = pruned(prunekit.method("evs", keep_ratio=ratio), name, batch)

    def expected(clip: Clip) -> set[int]:
        scores = {}
        for t, frame in enumerate(clip.frames):
            for p, n in enumerate(frame):
                scores[n] = 1 - cosine(clip.at(t, p), clip.at(t - 1, p)) if t else 3.0
        for n in clip.separators:  # as the token before it
            earlier = [m for m in range(n) if m not in clip.separators]
            scores[n] = scores[earlier[-1] if earlier else min(scores)]
        order = sorted(scores, key=lambda n: (-round(scores[n], 6), n))
        return set(order[: max(1, round(ratio * clip.count))])

    check_kept(cut, clips, expected)


def kernel(square: float) -> float:
    return sum(math.exp(-square / (2 * a)) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2))


def likeness(clip: Clip) -> tuple[list[list[float]], list[list[float]]]:
    every = np.array([clip.tokens[n] for frame in clip.frames for n in frame])
    variance = every.var(0)
    quiet = sorted(range(every.shape[1]), key=lambda d: (variance[d], d))[: every.shape[1] // 2]
    units = [[clip.tokens[n][quiet] / np.linalg.norm(clip.tokens[n][quiet]) for n in frame] for frame in clip.frames]
    centre = sum(u for frame in units for u in frame) / len(every)
    to_video = [[kernel(((u - centre) ** 2).sum()) for u in frame] for frame in units]
    to_frame = [[kernel(((u - sum(frame) / len(frame)) ** 2).sum()) for u in frame] for frame in units]
    return to_video, to_frame


@cases(*ALL)
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.8])
def test_vidcom2(name, padding, ratio):
    batch = batch_of(name, padding, seed=2)
    clips = clips_of(name, batch)
    cut, _ = pruned(prunekit.method("vidcom2", keep_ratio=ratio), name, batch)

    def expected(clip: Clip) -> set[int]:
        to_video, to_frame = likeness(clip)
        patches, between = budget(clip, ratio)
        mean = np.array([-sum(frame) / len(frame) for frame in to_video]) / 0.01
        share = np.exp(mean - mean.max()) / np.exp(mean - mean.max()).sum()
        counts = shares([1 + s - share.mean() for s in share], patches, len(clip.frames[0]))
        chosen = set()
        for t, frame in enumerate(clip.frames):
            order = sorted(range(len(frame)), key=lambda p: to_video[t][p] + to_frame[t][p])
            chosen |= {frame[p] for p in order[: counts[t]]}
        return with_separators(clip, chosen, between)

    check_kept(cut, clips, expected)


@cases(*ALL)
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.7])
@pytest.mark.parametrize("method", ["frames", "uniform_video"])
def test_controls(name, padding, ratio, method):
    batch = batch_of(name, padding, seed=3)
    clips = clips_of(name, batch)
    cut, _ = pruned(prunekit.method(method, keep_ratio=ratio), name, batch)

    def expected(clip: Clip) -> set[int]:
        keep, between = budget(clip, ratio)
        size = len(clip.frames[0])
        few = math.ceil(keep / size)
        if method == "uniform_video":
            few = min(max(round(len(clip.frames) * math.sqrt(keep / (size * len(clip.frames)))), few), keep)
        chosen, left = set(), keep
        for number, t in enumerate(spaced(few, len(clip.frames))):
            fair = keep // few + (number < keep % few) if method == "uniform_video" else min(left, size)
            chosen |= {clip.frames[t][p] for p in spaced(fair, size)}
            left -= fair
        return with_separators(clip, chosen, between)

    check_kept(cut, clips, expected)


NEEDS_FRAMES = ("dycoke", "evs", "fastvid", "frames", "holitom", "uniform_video")


@pytest.mark.parametrize("method", [*NEEDS_FRAMES, "vidcom2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(method, dtype):
    """Forward, backward and generation are finite, and scores are float32."""
    model, batch = zoo.build("qwen2_5_vl"), batch_of("qwen2_5_vl", "left", seed=4)
    with torch.autocast("cpu", dtype), prunekit.method(method, keep_ratio=0.3)(model) as trace:
        logits = model(**batch.inputs, use_cache=False).logits
        assert logits[batch.mask].isfinite().all() and trace.cuts[0].scores.dtype == torch.float32
        logits[batch.mask & ~batch.visual].float().square().mean().backward()
        with torch.no_grad():
            model.generate(**batch.inputs, max_new_tokens=2, do_sample=False)
    slopes = [p.grad for p in model.get_decoder().layers[-1].parameters()]
    assert all(slope is not None and slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize("method", NEEDS_FRAMES)
def test_an_image_has_no_frames(method):
    model, batch = zoo.build("qwen2_5_vl"), zoo.batch("qwen2_5_vl", "left")
    line = f"'{method}' compares frames.* sample 0 has an image"
    with torch.no_grad(), prunekit.method(method)(model), pytest.raises(prunekit.PrunekitError, match=line):
        model(**batch.inputs)


def test_an_image_is_a_video_of_one_frame():
    """VidCom2 on images: what is least like the picture's mean."""
    model, batch = zoo.build("qwen2_5_vl"), zoo.batch("qwen2_5_vl", "left", variant="two_images")
    with torch.no_grad(), prunekit.method("vidcom2", keep_ratio=0.5)(model) as trace:
        model(**batch.inputs)
    assert trace.cuts[0].kept.sum(1).tolist() == [max(1, round(n / 2)) for n in batch.visual.sum(1).tolist()]


def test_frames_with_holes_are_refused():
    model, batch = zoo.build("qwen2_5_vl"), zoo.batch("qwen2_5_vl", "left", variant="video")
    schedule = prunekit.create("schedule", "progressive", layers=[1, 2])
    pruner, line = prunekit.Pruner("evs", "ahead", schedule), "'evs' needs whole frames"
    with torch.no_grad(), pruner(model), pytest.raises(prunekit.PrunekitError, match=line):
        model(**batch.inputs)


def test_wrong_options():
    with pytest.raises(prunekit.PrunekitError, match=r"selector\.temperature must be above 0, not 0"):
        prunekit.create("selector", "vidcom2", temperature=0)


@cases(*ALL)
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.filterwarnings("ignore:dycoke keeps")
def test_dycoke(name, padding, ratio, variant):
    batch = batch_of(name, padding, seed=5)
    clips = clips_of(name, batch)
    cut, _ = pruned(prunekit.method("dycoke", keep_ratio=ratio, variant=variant), name, batch)

    def expected(clip: Clip) -> set[int]:
        keep, between = budget(clip, ratio)
        size, last = len(clip.frames[0]), len(clip.frames)
        against = {t: t - 1 for t in range(1, last, 2)}
        against |= {i + 2: i for i in range(0, last - (4 if variant == "code" else 2), 4)}
        chosen = {n for t, frame in enumerate(clip.frames) if t not in against for n in frame}
        each = shares([1.0] * len(against), max(keep - len(chosen), 0), size)
        for t, count in zip(sorted(against), each, strict=True):
            order = sorted(range(size), key=lambda p, t=t: cosine(clip.at(t, p), clip.at(against[t], p)))
            chosen |= {clip.frames[t][p] for p in order[:count]}
        return with_separators(clip, chosen, between)

    check_kept(cut, clips, expected)


def test_dycoke_says_what_it_cannot_reach():
    model, batch = zoo.build("qwen2_5_vl"), zoo.batch("qwen2_5_vl", "none", variant="video")
    pruner = prunekit.method("dycoke", keep_ratio=0.25)
    with torch.no_grad(), pruner(model) as trace, pytest.warns(UserWarning, match="dycoke keeps 4 tokens .* 2 are too"):
        model(**batch.inputs)
    assert trace.cuts[0].kept.sum(1).tolist() == [4, 4, 4]


def attention_of(name: str, batch) -> np.ndarray:
    """What the vision encoder's patches give each visual token, [B, N]."""
    pruner = prunekit.Pruner("cls", "single", "input", keep_ratio=0.5)
    return pruned(pruner, name, batch)[0].scores.double().numpy()


def density_peaks(tokens: list[np.ndarray], neighbours: int) -> list[float]:
    """Density times distance to the nearest denser token."""
    far = [[np.linalg.norm(x - y) / math.sqrt(len(x)) for y in tokens] for x in tokens]
    dense = [math.exp(-sum(d * d for d in sorted(row)[:neighbours]) / min(neighbours, len(row))) for row in far]
    most = max(max(row) for row in far)
    rank = [(-round(d, 12), i) for i, d in enumerate(dense)]  # of equally dense ones the earlier is denser
    gap = [min((far[i][j] for j in range(len(far)) if rank[j] < rank[i]), default=most) for i in range(len(far))]
    return [g * d for g, d in zip(gap, dense, strict=True)]


def check_entered(entered: np.ndarray, expected: dict[int, np.ndarray]) -> None:
    """All the expected tokens enter layer 0, in the order of their places."""
    rows = []
    for place in sorted(expected):
        far = np.abs(entered - expected[place]).max(1)
        assert far.min() < 1e-5, (place, far.min())
        rows.append(int(far.argmin()))
    assert rows == sorted(rows)


def fastvid(clip: Clip, attention: np.ndarray, keep: int, least: int = 8, threshold: float = 0.9, step: int = 4):
    """What stays, and what it becomes."""
    frames, size = len(clip.frames), len(clip.frames[0])
    means = [np.mean([clip.tokens[n] for n in frame], 0) for frame in clip.frames]
    alike = [cosine(means[t], means[t + 1]) for t in range(frames - 1)]
    ends = set(sorted(range(frames - 1), key=lambda t: alike[t])[: least - 1])
    ends |= {t for t in range(frames - 1) if alike[t] < threshold}
    bounds = [0, *(t + 1 for t in sorted(ends)), frames]
    counts = shares([1.0] * frames, keep, size)
    salient = []
    for t, frame in enumerate(clip.frames):
        order = sorted(frame, key=lambda n: -attention[n])
        salient.append(set(order[: counts[t] - int(counts[t] * 0.4)]))
    out = {n: clip.tokens[n] for own in salient for n in own}
    for start, end in itertools.pairwise(bounds):
        segment = range(start, end)
        bearers = [t for t in segment if (end - 1 - t) % step == 0]
        rooms = [size - len(salient[t]) for t in bearers]
        total = min(sum(int(counts[t] * 0.4) for t in segment), sum(rooms))
        others = [n for t in segment for n in clip.frames[t] if n not in salient[t]]
        each = spread_limited(rooms, total)
        for t, count in zip(bearers, each, strict=True):
            rest = [n for n in clip.frames[t] if n not in salient[t]]
            scores = dict(zip(rest, density_peaks([clip.tokens[n] for n in rest], 4), strict=True)) if rest else {}
            anchors = sorted(sorted(rest, key=lambda n: -scores[n])[:count])
            joined = {a: [] for a in anchors}
            for n in others:
                if anchors:
                    best = max(anchors, key=lambda a: cosine(clip.tokens[n], clip.tokens[a]))
                    joined[best].append(clip.tokens[n])
            for a in anchors:
                out[a] = 0.6 * clip.tokens[a] + 0.4 * np.mean(joined[a], 0)
    spare = sorted((n for frame in clip.frames for n in frame if n not in out), key=lambda n: -attention[n])
    return out | {n: clip.tokens[n] for n in spare[: keep - len(out)]}


def spread_limited(limits: list[int], total: int) -> list[int]:
    """One after the other in rounds, while there is room."""
    counts = [0] * len(limits)
    while total:
        for g in range(len(limits)):
            if counts[g] < limits[g] and total:
                counts[g] += 1
                total -= 1
    return counts


@cases(*ATTENTIVE)
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
@pytest.mark.parametrize(("least", "threshold", "step"), [(8, 0.9, 4), (2, 0.2, 2), (1, -1.0, 3)])
def test_fastvid(name, padding, ratio, least, threshold, step):
    batch = batch_of(name, padding, seed=6)
    clips, attention = clips_of(name, batch), attention_of(name, batch)
    selector = prunekit.create("selector", "fastvid", segments=least, threshold=threshold, step=step)
    cut, entered = pruned(prunekit.Pruner("cls", "single", "input", selector, "fastvid", keep_ratio=ratio), name, batch)
    for b, clip in enumerate(clips):
        expected = fastvid(clip, attention[b], max(1, round(ratio * clip.count)), least, threshold, step)
        assert set(torch.where(cut.kept[b])[0].tolist()) == set(expected)
        check_entered(entered[b], expected)


def best_windows(still: list[list[bool]]) -> list[tuple[int, int]]:
    """All divisions of the frames tried: the one that saves most, of equal ones that of the shortest last windows."""
    last, divisions = len(still), []
    for ends in itertools.product([False, True], repeat=last):
        bounds = [0, *(t + 1 for t in range(last) if ends[t]), last + 1]
        runs = [(a, b - 1) for a, b in itertools.pairwise(bounds)]
        stand = [sum(all(still[t][p] for t in range(a, b)) for p in range(len(still[0]))) for a, b in runs]
        saved = sum((b - a) * count for (a, b), count in zip(runs, stand, strict=True))
        divisions.append((-saved, [b - a for a, b in reversed(runs)], runs))
    return min(divisions)[2]


def clusters(members: list[int], tokens: dict[int, np.ndarray], count: int) -> dict[int, np.ndarray]:
    """Density peaks that take in the others."""
    if not count:
        return {}
    scores = dict(zip(members, density_peaks([tokens[n] for n in members], min(7, count)), strict=True))
    centres = sorted(members, key=lambda n: -scores[n])[:count]
    joined: dict[int, list[np.ndarray]] = {c: [] for c in centres}
    for n in members:
        if n not in centres:
            joined[min(centres, key=lambda c: np.linalg.norm(tokens[n] - tokens[c]))].append(tokens[n])
    return {c: 0.6 * tokens[c] + 0.4 * np.mean(joined[c], 0) if joined[c] else tokens[c] for c in centres}


def holitom(clip: Clip, attention: np.ndarray, keep: int, threshold: float, context: float):
    frames, size = len(clip.frames), len(clip.frames[0])
    pairs = range(frames - 1)
    still = [[cosine(clip.at(t, p), clip.at(t + 1, p)) > threshold for p in range(size)] for t in pairs]
    tokens = {n: clip.tokens[n] for frame in clip.frames for n in frame}
    static: dict[int, list[int]] = {t: [] for t in range(frames)}
    dynamic: dict[int, list[int]] = {}
    for a, b in best_windows(still):
        stand = [p for p in range(size) if b > a and all(still[t][p] for t in range(a, b))]
        static[a] = [clip.frames[a][p] for p in stand]
        tokens |= {clip.frames[a][p]: np.mean([clip.at(t, p) for t in range(a, b + 1)], 0) for p in stand}
        dynamic |= {t: [clip.frames[t][p] for p in range(size) if p not in stand] for t in range(a, b + 1)}
    groups = [dynamic[t] for t in range(frames)] + [static[t] for t in range(frames)]
    sizes = [len(group) for group in groups]
    keep = min(keep, sum(sizes))
    counts, out = proportional(sizes, keep), {}
    for number, (group, count) in enumerate(zip(groups, counts, strict=True)):
        best = round(count * (1 - context)) if number < frames else 0
        first = sorted(group, key=lambda n: -attention[n])[:best]
        out |= {n: tokens[n] for n in first} | clusters([n for n in group if n not in first], tokens, count - best)
    return out


def proportional(sizes: list[int], total: int) -> list[int]:
    whole = [total * n // sum(sizes) for n in sizes]
    order = sorted(range(len(sizes)), key=lambda g: (whole[g] - total * sizes[g] / sum(sizes), g))
    order = sorted(order, key=lambda g: (-round((total * sizes[g] / sum(sizes) - whole[g]) * 1e9), g))
    for g in order[: total - sum(whole)]:
        whole[g] += 1
    return whole


@cases(*ATTENTIVE)
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.8])
@pytest.mark.parametrize(("threshold", "context"), [(0.0, 0.0), (-0.2, 0.4), (0.15, 1.0), (2.0, 0.5)])
@pytest.mark.filterwarnings("ignore:holitom keeps")
def test_holitom(name, padding, ratio, threshold, context):
    batch = batch_of(name, padding, seed=7)
    clips, attention = clips_of(name, batch), attention_of(name, batch)
    selector = prunekit.create("selector", "holitom", threshold=threshold, context=context)
    cut, entered = pruned(prunekit.Pruner("cls", "single", "input", selector, "holitom", keep_ratio=ratio), name, batch)
    for b, clip in enumerate(clips):
        expected = holitom(clip, attention[b], max(1, round(ratio * clip.count)), threshold, context)
        assert set(torch.where(cut.kept[b])[0].tolist()) == set(expected)
        check_entered(entered[b], expected)


def scenes(means: list[np.ndarray], share: float, neighbours: int) -> list[tuple[int, int]]:
    """Runs of frames nearest to the same density peak."""
    count = math.ceil(share * len(means))
    scores = density_peaks(means, min(neighbours, len(means)))
    centres = sorted(range(len(means)), key=lambda t: -scores[t])[:count]
    near = lambda t: t if t in centres else min(sorted(centres), key=lambda c: np.linalg.norm(means[t] - means[c]))  # noqa: E731
    bounds = [0, *(t for t in range(1, len(means)) if near(t) != near(t - 1)), len(means)]
    return list(itertools.pairwise(bounds))


def averaged(members: list[int], tokens: dict[int, np.ndarray], count: int, neighbours: int) -> dict[int, np.ndarray]:
    """Clusters around density peaks, each the mean of its tokens."""
    if not count:
        return {}
    scores = dict(zip(members, density_peaks([tokens[n] for n in members], min(neighbours, len(members))), strict=True))
    centres = sorted(members, key=lambda n: -scores[n])[:count]
    own = {c: [tokens[c]] for c in centres}
    for n in members:
        if n not in centres:
            own[min(sorted(centres), key=lambda c: np.linalg.norm(tokens[n] - tokens[c]))].append(tokens[n])
    return {c: np.mean(rows, 0) for c, rows in own.items()}


def prunevid(clip: Clip, keep: int, share: float, threshold: float, neighbours: int = 7):
    size = len(clip.frames[0])
    means = [np.mean([clip.tokens[n] for n in frame], 0) for frame in clip.frames]
    tokens = {n: clip.tokens[n] for frame in clip.frames for n in frame}
    dynamic, static = [], [[] for _ in clip.frames]
    for a, b in scenes(means, share, neighbours):
        pairs = list(itertools.combinations(range(a, b), 2))
        for p in range(size):
            alike = [cosine(clip.at(t, p), clip.at(u, p)) for t, u in pairs]
            if alike and np.mean(alike) >= threshold:
                static[a].append(clip.frames[a][p])
                tokens[clip.frames[a][p]] = np.mean([clip.at(t, p) for t in range(a, b)], 0)
        gone = {p for p in range(size) if clip.frames[a][p] in static[a]}
        dynamic += [[clip.frames[t][p] for p in range(size) if p not in gone] for t in range(a, b)]
    groups = dynamic + static
    counts, out = proportional([len(g) for g in groups], min(keep, sum(map(len, groups)))), {}
    for group, count in zip(groups, counts, strict=True):
        out |= averaged(group, tokens, count, neighbours)
    return out


@cases(*ALL)
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.8])
@pytest.mark.parametrize(("share", "threshold"), [(0.25, 0.0), (0.5, -0.1), (1.0, 0.0), (0.1, 2.0)])
@pytest.mark.filterwarnings("ignore:prunevid keeps")
def test_prunevid_before_the_decoder(name, padding, ratio, share, threshold):
    batch = batch_of(name, padding, seed=8)
    selector = prunekit.create("selector", "prunevid", scenes=share, threshold=threshold)
    cut, entered = pruned(
        prunekit.Pruner("random", "single", "input", selector, "prunevid", keep_ratio=ratio), name, batch
    )
    for b, clip in enumerate(clips_of(name, batch)):
        keep, between = budget(clip, ratio)
        expected = prunevid(clip, keep, share, threshold)
        assert set(torch.where(cut.kept[b])[0].tolist()) == with_separators(clip, set(expected), between)
        check_entered(entered[b], expected)


@cases(*ATTENTIVE)
def test_two_stages_meet_the_budget_by_the_attention_that_each_names(name, padding):
    """The second cut's scores are those of an eager layer: the largest of the instruction's rows, the last row."""
    batch = batch_of(name, padding, seed=9)
    for method, ratio in (("prunevid", 0.2), ("holitom_full", 0.1)):
        with torch.no_grad(), prunekit.method(method, keep_ratio=ratio)(model_of(name)) as trace:
            model_of(name)(**batch.inputs)
        first, second = trace.cuts
        wanted = [max(1, round(ratio * clip.count)) for clip in clips_of(name, batch)]
        assert second.kept.sum(1).tolist() == wanted and not bool((second.kept & ~first.kept).any())
        standing = first.kept & ~second.kept
        for b in range(len(wanted)):
            if standing[b].any():
                assert second.scores[b][second.kept[b]].min() >= second.scores[b][standing[b]].max()


def test_tokens_are_folded_one_after_the_other():
    """HoliTom's second cut: into the most similar one that stays, each time by the mean of the two."""
    rng = np.random.default_rng()
    tokens, alive = rng.normal(size=(3, 9, 4)), rng.random((3, 9)) < 0.9
    kept = alive & (rng.random((3, 9)) < 0.4)
    kept[:, 0] = alive[:, 0] = True
    expected = tokens.copy()
    for b in range(3):
        for n in np.flatnonzero(alive[b] & ~kept[b]):
            target = max(np.flatnonzero(kept[b]), key=lambda k: cosine(tokens[b, n], tokens[b, k]))
            expected[b, target] = (expected[b, target] + tokens[b, n]) / 2
    reducer = prunekit.create("reducer", "holitom")
    folded = reducer.reduce_later(*map(torch.from_numpy, (tokens, kept, alive))).tokens.numpy()
    np.testing.assert_allclose(folded[kept], expected[kept], atol=1e-12)


def fused(clip: Clip, tokens: dict[int, np.ndarray], keep: int, similarity: float, least: float):
    """One round of merging: the tokens after it, and whether merging goes on, ends, or has met the budget."""
    pairs = {}
    for place in range(len(clip.frames[0])):
        line = [frame[place] for frame in clip.frames if frame[place] in tokens]
        pairs |= {b: (a, cosine(tokens[a], tokens[b])) for a, b in itertools.pairwise(line)}
    merges = [n for n, (_, alike) in pairs.items() if alike >= similarity]
    state = "on" if len(merges) >= least * len(tokens) else "over"
    if len(merges) >= len(tokens) - keep:
        merges, state = sorted(merges, key=lambda n: -pairs[n][1])[: len(tokens) - keep], "met"
    runs = {n: [n] for n in tokens if n not in merges}
    for n in sorted(merges):
        head = n
        while head in merges:
            head = pairs[head][0]
        runs[head].append(n)
    return {head: np.mean([tokens[n] for n in members], 0) for head, members in runs.items()}, state


@cases(*ALL)
@pytest.mark.parametrize("ratio", [0.2, 0.6])
@pytest.mark.parametrize(("similarity", "least"), [(0.0, 0.1), (-0.3, 0.9), (0.9, 0.1), (-1.0, 0.0)])
def test_framefusion(name, padding, ratio, similarity, least):
    """The first round by its tokens; the later ones by how many stay."""
    batch = batch_of(name, padding, seed=10)
    pruner = prunekit.method("framefusion", keep_ratio=ratio)
    selector = prunekit.create("selector", "framefusion", similarity=similarity, least=least)
    with torch.no_grad(), pruner.replace(selector=selector)(model_of(name)) as trace:
        model_of(name)(**batch.inputs)
    cuts = trace.cuts
    cut, entered = pruned(pruner.replace(selector=selector), name, batch)
    for b, clip in enumerate(clips_of(name, batch)):
        keep = max(1, round(ratio * clip.count))
        tokens = {n: clip.tokens[n] for n in [*clip.separators, *itertools.chain(*clip.frames)]}
        expected, state = fused(clip, tokens, keep, similarity, least)
        assert set(torch.where(cut.kept[b])[0].tolist()) == set(expected)
        check_entered(entered[b], expected)
        counts = [int(c.kept[b].sum()) for c in cuts]
        assert counts[-1] == keep and counts == sorted(counts, reverse=True)
        assert {"met": counts[0] == keep, "over": counts[1] == keep, "on": counts[1] <= counts[0]}[state]
        if state == "over" and counts[0] > keep:  # the least attended go, in the one cut behind
            gone = cuts[0].kept[b] & ~cuts[1].kept[b]
            assert cuts[1].scores[b][gone].max() <= cuts[1].scores[b][cuts[1].kept[b]].min()


def test_framefusion_prunes_by_what_all_queries_give():
    name = "qwen2_5_vl"
    batch, model = batch_of(name, "left", seed=11), zoo.build(name, "eager")
    selector = prunekit.create("selector", "framefusion", similarity=1.0)  # nothing merges
    pruner = prunekit.method("framefusion", keep_ratio=0.5).replace(selector=selector)
    with torch.no_grad():
        weights = model(**batch.inputs, output_attentions=True).attentions[0].double().mean(1)
        with pruner(model_of(name)) as trace:
            model_of(name)(**batch.inputs)
    total = (weights * batch.mask[:, :, None]).sum(1)
    for b in range(len(total)):
        own = total[b][batch.visual[b]]
        scores = trace.cuts[1].scores[b][: len(own)].double()
        assert (scores - own).abs().max() < 1e-4
