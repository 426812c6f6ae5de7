"""Notes what a model's images and videos were when it encoded them, for ``view.places``.

``generate`` encodes before the forward pass and keeps sizes and grids to itself, so the calls that make features are
watched, on the model's instance.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from prunekit.views.media import EncodedMedia

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHODS = {"get_image_features": "image", "get_video_features": "video"}


class MediaThread(threading.local):
    """What the calling thread has encoded, and the call in which it does so now."""

    encoded: tuple[EncodedMedia, ...] = ()
    current: EncodedMedia | None = None


class MediaWatch:
    """The watched methods of one model; what a thread encoded waits to be taken."""

    def __init__(self, core: PreTrainedModel) -> None:
        self.core = core
        self._thread = MediaThread()
        self._watched: list[str] = []

    def install(self) -> None:
        """Watch the model's methods."""
        for name, kind in METHODS.items():
            if callable(method := getattr(self.core, name, None)) and name not in vars(self.core):
                setattr(self.core, name, self._watching(method, kind))
                self._watched.append(name)

    def remove(self) -> None:
        """Give the model its own methods back. Idempotent."""
        for name in self._watched:
            vars(self.core).pop(name, None)
        self._watched = []

    @property
    def current(self) -> EncodedMedia | None:
        """The call in which the thread encodes images or videos now."""
        return self._thread.current

    def pop(self) -> tuple[EncodedMedia, ...]:
        """What the thread has encoded since it was last asked."""
        encoded, self._thread.encoded = self._thread.encoded, ()
        return encoded

    def _watching(self, method: Callable[..., Any], kind: str) -> Callable[..., Any]:
        signature = inspect.signature(method)

        @functools.wraps(method)
        def watching(*args: object, **kwargs: object) -> Any:
            if self._thread.current is not None:  # videos are encoded by way of images
                return method(*args, **kwargs)
            arguments = dict(signature.bind_partial(*args, **kwargs).arguments)
            arguments |= arguments.pop("kwargs", {})
            arguments = {name: _outline(value) for name, value in arguments.items()}
            self._thread.current = call = EncodedMedia(kind, arguments)
            try:
                return method(*args, **kwargs)
            finally:
                self._thread.current = None
                self._thread.encoded = (*self._thread.encoded, call)

        watching.of_session = True  # type: ignore[attr-defined]  # no part of the model
        return watching


def _outline(value: object) -> object:
    """Pixels as a tensor of their shape without numbers, so that nothing is kept; anything else as it is."""
    return value.to("meta") if isinstance(value, torch.Tensor) and value.is_floating_point() else value
