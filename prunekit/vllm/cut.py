"""The cut of one image before the decoder, outside of any forward pass of the language model.

It is the engine's own ``Cutter``: an image, with the prompt around it where a component reads that, is posed as a batch
of one sample that is about to enter decoder layer 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from prunekit.engine.arrival import arrive
from prunekit.engine.cutter import Cutter
from prunekit.engine.decoder_cut import DecoderCut
from prunekit.engine.prefill import Prefill
from prunekit.engine.target import Target
from prunekit.families import Family
from prunekit.pruning.pruner import Pruner
from prunekit.tensors.sequences import PromptLayout
from prunekit.views.doubts import check_doubts
from prunekit.views.media import MediaRecord


@dataclass(frozen=True)
class Surroundings:
    """The words of a prompt around an image, for components that read them.

    Attributes:
        ids: token ids of the prompt, with an image placeholder at each of the image's tokens, long [S].
        visual: where these stand, bool [S].
        embeds: embeddings of the tokens [S, D]; arbitrary where ``visual``.
    """

    ids: torch.Tensor
    visual: torch.Tensor
    embeds: torch.Tensor


class ImageCut:
    """One pruner on one model, an image at a time. Not for several threads."""

    def __init__(self, pruner: Pruner, family: Family) -> None:
        self.plan = pruner.plan(family)
        self.target = Target(self.plan, family)
        self._cutter = Cutter(self.plan)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While the model encodes one image: note what components will read of its encoder."""
        encoder, media = self.target.encoder, self.target.media
        try:
            if encoder is not None:
                encoder.install(self.target.family.core)
            if media is not None:
                media.install()
            yield
        finally:
            if encoder is not None:
                encoder.remove()
            if media is not None:
                media.remove()

    def __call__(self, tokens: torch.Tensor, around: Surroundings | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """What stays of an image's ``tokens`` [N, D], just encoded under ``watching``: [K, D], and the number of each
        among the N, long [K].

        Raises:
            PrunekitError: for a component that reads the prompt without ``around``, and answers that do not fit.
        """
        family, count = self.target.family, len(tokens)
        if around is None:
            visual_BS = torch.ones(1, count, dtype=torch.bool, device=tokens.device)
            hidden_BSD, ids_BS, prompt_BS = tokens[None], None, torch.zeros_like(visual_BS)
        else:
            visual_BS, ids_BS, prompt_BS = around.visual[None], around.ids[None], None
            hidden_BSD = around.embeds.to(tokens.dtype).masked_scatter(around.visual[:, None], tokens)[None]
        state = Prefill.begin(PromptLayout.build(ids_BS, None, visual_BS, prompt_BS))
        state.inputs_embeds = hidden_BSD
        if self.target.media is not None:
            state.media = MediaRecord(family, self.target.media.pop(), state.inputs)
        hidden = hidden_BSD
        if self.target.encoder is not None:
            hidden = arrive(self.target.encoder.pop_records(), state, hidden, family.token_axis)
        hidden = self._cutter.cut(DecoderCut(self.target, 0, state, hidden, {}))
        check_doubts(state.doubts)
        if state.sequence.index is None:
            return tokens, torch.arange(count, device=tokens.device)
        index_M = state.sequence.index[0]
        stays_M = visual_BS[0].gather(0, index_M)
        first = int(visual_BS[0].long().argmax())
        return hidden[0, stays_M], index_M[stays_M] - first
