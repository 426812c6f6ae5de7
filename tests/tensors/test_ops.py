"""``prunekit.ops`` against slow plain loops on random inputs, and the method files that need nothing else."""

from __future__ import annotations

import ast
import math
import re
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prunekit
from paths import ROOT
from prunekit import ops
from zoo.tiny import make_batch, tiny_model

SEEDS = st.integers(0, 10**6)
few = settings(max_examples=40)


class Batch:
    """A few samples: ``tokens`` [B, N, D], ``alive`` [B, N] and its subset ``kept`` [B, N], neither of them empty."""

    def __init__(self, seed: int) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.size, self.samples = self.whole(1, 12), self.whole(1, 4)
        self.tokens = torch.randn(self.samples, self.size, self.whole(1, 6), generator=self.draw)
        self.alive = self.mask(0.8)
        self.alive[:, self.whole(0, self.size - 1)] = True
        self.kept = self.alive & self.mask(0.4)
        self.kept[torch.arange(self.samples), self.alive.long().argmax(1)] = True

    def whole(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.draw))

    def mask(self, share: float) -> torch.Tensor:
        return torch.rand(self.samples, self.size, generator=self.draw) < share

    def counts(self, most: int) -> torch.Tensor:
        return torch.randint(0, most + 1, (self.samples,), generator=self.draw)

    def tied_scores(self) -> torch.Tensor:
        """Few different values, so that ties are common."""
        return torch.randint(0, 4, (self.samples, self.size), generator=self.draw).float()


def places(row: torch.Tensor) -> list[int]:
    return [n for n, true in enumerate(row.tolist()) if true]


class TestIndexing:
    @few
    @given(seed=SEEDS, axis=st.sampled_from([1, 2, 3]))
    def test_gather_tokens(self, seed, axis):
        batch = Batch(seed)
        index = torch.randint(0, batch.size, (batch.samples, batch.whole(0, 5)), generator=batch.draw)
        x = batch.tokens[(None,) * (axis - 1)].expand(*(2,) * (axis - 1), *batch.tokens.shape)
        gathered = ops.gather_tokens(x, index, axis)
        expected = [[row[i].tolist() for i in chosen] for row, chosen in zip(batch.tokens, index.tolist(), strict=True)]
        for leading in gathered.flatten(0, axis - 2) if axis > 1 else [gathered]:
            assert leading.tolist() == expected

    @few
    @given(seed=SEEDS, left=st.booleans())
    def test_ragged_index(self, seed, left):
        batch = Batch(seed)
        size = int(batch.alive.sum(1).max())
        index, valid = ops.ragged_index(batch.alive, size, pad_left=left)
        for b, true in enumerate(map(places, batch.alive)):
            padding = [0] * (size - len(true))
            assert index[b].tolist() == (padding + true if left else true + padding)
            marks = [True] * len(true)
            unused = [False] * len(padding)
            assert valid[b].tolist() == (unused + marks if left else marks + unused)

    @few
    @given(seed=SEEDS, wide=st.booleans(), ragged=st.booleans(), fill=st.sampled_from([0, -1]))
    def test_scatter_where_and_put_where(self, seed, wide, ragged, fill):
        batch = Batch(seed)
        size = batch.size + batch.whole(0, 3)
        values = batch.tokens if wide else batch.tokens[..., 0]
        index = torch.rand(batch.samples, size, generator=batch.draw).argsort(1)[:, : batch.size]
        valid = batch.alive if ragged else None
        onto = torch.randn(batch.samples, size, *values.shape[2:], generator=batch.draw)
        before = onto.clone()
        scattered = ops.scatter_where(values, index, valid, size, fill)
        put = ops.put_where(onto, values.double(), index, valid)
        for b in range(batch.samples):
            fresh = [torch.full(values.shape[2:], fill).tolist()] * size
            changed = before[b].tolist()
            for m in range(batch.size):
                if valid is None or valid[b, m]:
                    fresh[index[b, m]] = changed[index[b, m]] = values[b, m].tolist()
            assert scattered[b].tolist() == fresh and put[b].tolist() == changed
        assert torch.equal(onto, before) and put.dtype == onto.dtype

    @few
    @given(seed=SEEDS)
    def test_scatter_where_undoes_gather_tokens(self, seed):
        batch = Batch(seed)
        index, valid = ops.ragged_index(batch.alive, int(batch.alive.sum(1).max()))
        back = ops.scatter_where(ops.gather_tokens(batch.tokens, index), index, valid, batch.size)
        assert torch.equal(back, batch.tokens * batch.alive[..., None])
        assert torch.equal(ops.scatter_where(valid, index, valid, batch.size), batch.alive)

    def test_gradients_reach_valid_values_alone(self):
        values = torch.randn(1, 3, 2, requires_grad=True)
        valid = torch.tensor([[True, False, True]])
        ops.scatter_where(values, torch.tensor([[4, 0, 1]]), valid, 5).sum().backward()
        assert torch.equal(values.grad, valid[..., None].expand(1, 3, 2).float())

    def test_shapes_that_do_not_fit_are_an_error(self):
        values, index = torch.zeros(2, 3, 4), torch.zeros(2, 1, dtype=torch.long)
        with pytest.raises(prunekit.PrunekitError, match=r"agree in \[B, M\], not \[\(2, 3\), \(2, 1\)\]"):
            ops.scatter_where(values, index, None, 5)
        with pytest.raises(prunekit.PrunekitError, match=r"agree in \[B, M\]"):
            ops.put_where(torch.zeros(2, 5, 4), values, index.expand(2, 3), torch.ones(2, 1, dtype=torch.bool))


class TestRanking:
    @few
    @given(seed=SEEDS)
    def test_ranks_and_top_k(self, seed):
        batch = Batch(seed)
        scores, count = batch.tied_scores(), batch.counts(batch.size + 2)
        ranked, chosen = ops.ranks(scores), ops.top_k(scores, count, batch.alive)
        for b, row in enumerate(scores.tolist()):
            order = sorted(range(batch.size), key=lambda n, row=row: (-row[n], n))
            assert [order.index(n) for n in range(batch.size)] == ranked[b].tolist()
            standing = [n for n in order if batch.alive[b, n]]
            assert places(chosen[b]) == sorted(standing[: count[b]])

    def test_top_k_takes_a_standing_token_of_score_minus_infinity_rather_than_one_that_is_gone(self):
        scores, alive = torch.tensor([[-math.inf, -math.inf, 1.0]]), torch.tensor([[True, False, True]])
        assert ops.top_k(scores, torch.tensor([2]), alive).tolist() == [[True, False, True]]

    @few
    @given(seed=SEEDS)
    def test_stride(self, seed):
        batch = Batch(seed)
        count = batch.counts(batch.size + 2)
        chosen = ops.stride(batch.alive, count)
        for b, standing in enumerate(map(places, batch.alive)):
            n, k = len(standing), int(count[b])
            steps = [r for r in range(n) if math.floor((r + 1) * k / n) > math.floor(r * k / n)]
            assert places(chosen[b]) == [standing[r] for r in steps]
            assert len(steps) == min(n, k)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


class TestMerging:
    @few
    @given(seed=SEEDS)
    def test_cosine(self, seed):
        batch = Batch(seed)
        others = torch.randn(batch.samples, 3, batch.tokens.shape[2], generator=batch.draw)
        for given_others, second in ((None, batch.tokens), (others, others)):
            every = ops.cosine(batch.tokens, given_others)
            for b in range(batch.samples):
                expected = [[cosine(x, y) for y in second[b].tolist()] for x in batch.tokens[b].tolist()]
                assert torch.allclose(every[b], torch.tensor(expected), atol=1e-5)
        assert ops.cosine(batch.tokens.bfloat16()).dtype == torch.float32

    @few
    @given(seed=SEEDS, spare=st.integers(0, 2))
    def test_nearest(self, seed, spare):
        batch = Batch(seed)
        most = min(batch.size, int(batch.kept.sum(1).max()) + spare)
        for answer in (ops.nearest(batch.tokens, batch.kept), ops.nearest(batch.tokens, batch.kept, most)):
            for b, candidates in enumerate(map(places, batch.kept)):
                for n, x in enumerate(batch.tokens[b].tolist()):
                    values = {m: cosine(x, batch.tokens[b, m].tolist()) for m in candidates}
                    assert int(answer[b, n]) in candidates
                    assert values[int(answer[b, n])] == pytest.approx(max(values.values()), abs=1e-5)

    def test_of_equal_candidates_the_earlier_is_nearest_and_without_any_the_answer_is_0(self):
        tokens = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]).expand(2, 4, 2)
        among = torch.tensor([[False, True, True, False], [False] * 4])
        for most in (None, 2):
            assert ops.nearest(tokens, among, most).tolist() == [[1] * 4, [0] * 4]
        assert ops.nearest(tokens, among & False, 0).tolist() == [[0] * 4] * 2

    @few
    @given(seed=SEEDS)
    def test_sum_into(self, seed):
        batch = Batch(seed)
        target = torch.randint(0, batch.size, batch.alive.shape, generator=batch.draw)
        weights = torch.rand(batch.alive.shape, generator=batch.draw)
        sums, totals = ops.sum_into(batch.tokens, weights, target)
        for b in range(batch.samples):
            for n in range(batch.size):
                comes = [m for m in range(batch.size) if target[b, m] == n]
                expected = sum((weights[b, m] * batch.tokens[b, m] for m in comes), torch.zeros(batch.tokens.shape[2]))
                assert torch.allclose(sums[b, n], expected, atol=1e-5)
                assert float(totals[b, n]) == pytest.approx(sum(float(weights[b, m]) for m in comes), abs=1e-5)

    @few
    @given(seed=SEEDS)
    def test_merge_into(self, seed):
        """Whatever stands as the target of a token that stays or is gone; a target of -1 takes a token nowhere."""
        batch = Batch(seed)
        sizes = torch.randint(1, 5, batch.alive.shape, generator=batch.draw).float()
        candidates = ops.nearest(batch.tokens, batch.kept)
        target = torch.where(batch.mask(0.7), candidates, -1)
        target = torch.where(batch.alive & ~batch.kept, target, batch.whole(-1, batch.size - 1))
        tokens, merged_sizes = ops.merge_into(batch.tokens, sizes, target, batch.kept, batch.alive)
        for b in range(batch.samples):
            goes = places(batch.alive[b] & ~batch.kept[b])
            for n in places(batch.kept[b]):
                group = [n, *(m for m in goes if target[b, m] == n)]
                mass = sum(float(sizes[b, m]) for m in group)
                mean = sum(sizes[b, m] * batch.tokens[b, m] for m in group) / mass
                assert torch.allclose(tokens[b, n], mean, atol=1e-5) and float(merged_sizes[b, n]) == mass
            others = ~batch.kept[b]
            assert torch.equal(tokens[b, others], batch.tokens[b, others])
            assert torch.equal(merged_sizes[b, others], sizes[b, others])

    def test_merge_into_keeps_the_type_of_the_tokens(self):
        batch = Batch(0)
        tokens = batch.tokens.bfloat16()
        target = ops.nearest(tokens, batch.kept)
        merged, sizes = ops.merge_into(tokens, batch.alive.float(), target, batch.kept, batch.alive)
        assert merged.dtype == torch.bfloat16 and sizes.dtype == torch.float32

    def test_shapes_that_do_not_fit_are_an_error(self):
        batch = Batch(1)
        target = torch.zeros(batch.samples, batch.size + 1, dtype=torch.long)
        with pytest.raises(prunekit.PrunekitError, match="sizes, target, kept and alive must be"):
            ops.merge_into(batch.tokens, batch.alive.float(), target, batch.kept, batch.alive)


def test_check_choice_names_the_value_the_nearest_choice_and_all():
    prunekit.check_choice("variant", "code", ("code", "paper"))
    with pytest.raises(prunekit.PrunekitError) as error:
        prunekit.check_choice("variant", "papr", ("code", "paper"))
    assert str(error.value) == "Unknown variant 'papr'. Did you mean 'paper'? Available: code, paper"


def test_the_reducer_of_the_docs_gives_what_the_built_in_one_does(tmp_path, monkeypatch):
    """It fits in 20 lines, and needs nothing but the page."""
    parts = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "new-method.md").read_text(), flags=re.DOTALL)
    code = next(part for part in parts if "prunekit.Reducer" in part)
    assert len(code.splitlines()) <= 20
    heads = "from dataclasses import dataclass\nimport prunekit\n"
    (tmp_path / "documented.py").write_text(heads + code.replace("into_nearest", "into_nearest_of_the_docs"))
    monkeypatch.setenv("PRUNEKIT_METHODS", str(tmp_path))
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    outputs = []
    for reducer in ("into_nearest_of_the_docs", "merge", "drop"):
        with torch.no_grad(), prunekit.Pruner(reducer=reducer, keep_ratio=0.3)(model):
            outputs.append(model(**batch.inputs).logits[:, -1])
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


def test_all_operations_are_documented():
    assert sorted(ops.__all__) == ops.__all__
    for name in ops.__all__:
        assert f"``{name}``" in ops.__doc__ and "[" in getattr(ops, name).__doc__, name


class TestImports:
    """What may import what."""

    @pytest.mark.parametrize("path", sorted((ROOT / "methods").glob("*.py")), ids=lambda path: path.name)
    def test_a_method_needs_prunekit_torch_and_the_standard_library_alone(self, path):
        """And of prunekit only what is public: ``prunekit.NAME`` and ``prunekit.ops.NAME``."""
        public = {"prunekit": prunekit.__all__, "prunekit.ops": ops.__all__}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
                assert all(n in ("prunekit", "torch") or n.split(".")[0] in sys.stdlib_module_names for n in names)
            elif isinstance(node, ast.ImportFrom):
                assert node.module == "torch" or node.module.split(".")[0] in sys.stdlib_module_names, node.module
            elif isinstance(node, ast.Attribute) and (owner := ast.unparse(node.value)) in public:
                assert node.attr in public[owner], f"{owner}.{node.attr}"

    def test_the_maths_needs_errors_and_torch_alone(self):
        for path in (ROOT / "prunekit" / "tensors").glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                module = getattr(node, "module", None) or ""
                assert not module.startswith("prunekit") or module.startswith(("prunekit.errors", "prunekit.tensors"))
