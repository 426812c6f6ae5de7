"""The images and videos of one forward pass, as the model was given them: what ``view.places`` is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prunekit.families import Family
from prunekit.families.geometry import MediaCall, Medium, Reader, UnknownPlaces
from prunekit.families.support import support_of
from prunekit.tensors.sequences import PromptLayout
from prunekit.views.places import Places, places_of

VIDEO_TYPE = 2
"""The number by which ``mm_token_type_ids`` mark videos."""


@dataclass(frozen=True)
class EncodedMedia:
    """What one call of ``get_image_features`` or ``get_video_features`` was given, by name."""

    kind: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class MediaRecord:
    """The media that a forward pass came with.

    Attributes:
        encoded: the calls by which the model encoded them, before or during the pass.
        inputs: keyword arguments of the core model's forward.
    """

    family: Family
    encoded: Sequence[EncodedMedia]
    inputs: Mapping[str, object]

    @classmethod
    def of_inputs(cls, family: Family, inputs: Mapping[str, object]) -> MediaRecord:
        """The media among a processor's outputs, without a forward pass."""
        kinds: dict[str, dict[str, Any]] = {"image": {}, "video": {}}
        for name, value in inputs.items():
            kinds["video" if "video" in name else "image"][name] = value
        encoded = [
            EncodedMedia(kind, arguments)
            for kind, arguments in kinds.items()
            if any(name.startswith("pixel_values") for name in arguments)
        ]
        return cls(family, encoded, inputs)

    def places(self, layout: PromptLayout) -> Places:
        """Where the visual tokens of a prefill stand.

        Raises:
            UnknownPlaces: where the inputs do not say it, or on a family whose geometry is not known.
        """
        name = self.family.model_type
        reader = support_of(name).geometry
        if reader is None:
            raise UnknownPlaces(f"where the visual tokens of '{name}' stand is not known")
        if not self.encoded:
            raise UnknownPlaces("the model did not encode images under this pruner: give it pixels, not features")
        video_BS, pace = self.videos(layout), self.inputs.get("second_per_grid_ts")
        paces = () if pace is None else torch.as_tensor(pace).tolist()
        problem, batch = None, len(layout.counts)
        for repeats in range(1, batch + 1):  # beams and returned sequences repeat what was encoded once
            if batch % repeats or layout.counts != tuple(n for n in layout.counts[::repeats] for _ in range(repeats)):
                continue
            try:
                media = self._media(layout, video_BS, repeats, reader)
                return places_of(media, self._kinds(layout, video_BS, repeats), repeats, paces)
            except UnknownPlaces as error:
                problem = problem or error
        assert problem is not None
        raise problem

    @staticmethod
    def _kinds(layout: PromptLayout, video_BS: torch.Tensor, repeats: int) -> list[list[str]]:
        """The kind of each visual token in order, of each sample that was encoded."""
        rows = zip(video_BS[::repeats], layout.visual[::repeats], strict=True)
        return [["video" if video else "image" for video in row[mask].tolist()] for row, mask in rows]

    def _media(
        self, layout: PromptLayout, video_BS: torch.Tensor, repeats: int, reader: Reader
    ) -> dict[str, list[Medium]]:
        """The media by kind, if each sample stands ``repeats`` times in the batch."""
        media: dict[str, list[Medium]] = {}
        ids = None if layout.input_ids is None else layout.input_ids[::repeats]
        for call in self.encoded:
            own = video_BS if call.kind == "video" else ~video_BS
            visual = (layout.visual & own)[::repeats]
            read = reader(self.family.core, MediaCall(call.kind, dict(call.arguments), visual, ids))
            media.setdefault(call.kind, []).extend(read)
        encoded = sum(len(medium) for items in media.values() for medium in items)
        if encoded * repeats != sum(layout.counts):
            raise UnknownPlaces(
                f"{sum(layout.counts)} visual tokens in the batch, {encoded} in the media that "
                f"'{self.family.model_type}' encoded: it keeps, drops or adds some by itself"
            )
        return media

    def videos(self, layout: PromptLayout) -> torch.Tensor:
        """Which of the visual tokens are videos, bool [B, S].

        Raises:
            UnknownPlaces: where both kinds stand in one prompt, and nothing tells them apart.
        """
        kinds = {call.kind for call in self.encoded}
        if len(kinds) == 1:
            return torch.full_like(layout.visual, "video" in kinds)
        types = self.inputs.get("mm_token_type_ids")
        if types is not None and bool((video_BS := torch.as_tensor(types) == VIDEO_TYPE).any()):
            return video_BS.to(layout.visual.device)
        config = self.family.config
        video = getattr(config, "video_token_id", None) or getattr(config, "video_token_index", None)
        if layout.input_ids is None or video is None or not bool((layout.input_ids == video).any()):
            raise UnknownPlaces("images and videos in one prompt: which placeholders are which is not known")
        return layout.input_ids == video
