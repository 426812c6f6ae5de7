"""The shape of a model, as far as its cost goes: given by hand, or read off a config (``reading``)."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.errors import PrunekitError


@dataclass(frozen=True)
class Stack:
    """A run of transformer layers.

    Attributes:
        hidden: width d of the hidden states.
        layers: how many.
        heads, kv_heads, head_dim: query heads, key and value heads (grouped-query attention; as many as ``heads`` if
            not given), and the width of one (``hidden / heads``).
        mlp: width m of the MLP (4d if not given).
        gated: whether the MLP has three matrices (Llama) instead of two.
        value_dim: width of a value, where it is not ``head_dim``.
        weights: weights that each token is multiplied by, a number a layer, where they were read off modules (experts
            that are not chosen do not count); else they follow from the widths.
        attends: which layers attend at all (recurrent and convolution layers do not); all of them if not given.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    mlp: int | None = None
    gated: bool = True
    value_dim: int | None = None
    weights: tuple[int, ...] | None = None
    attends: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "heads", "kv_heads", "head_dim", "mlp", "value_dim"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise PrunekitError(f"shape: {name} must be a whole number from 1 on, not {value!r}")
        for name in ("weights", "attends"):
            value = getattr(self, name)
            if value is not None and len(value) != self.layers:
                raise PrunekitError(f"shape: {name} has {len(value)} entries for {self.layers} layers")
        if self.head_dim is None and self.hidden % self.heads:
            raise PrunekitError(f"shape: {self.heads} heads do not divide a width of {self.hidden}; give head_dim")

    @property
    def key_width(self) -> int:
        """Width of one head's queries and keys."""
        return self.head_dim or self.hidden // self.heads

    @property
    def value_width(self) -> int:
        """Width of one head's values."""
        return self.value_dim or self.key_width

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def mlp_width(self) -> int:
        """Width of the MLP."""
        return self.mlp or 4 * self.hidden

    def token_macs(self, layer: int) -> int:
        """Multiply-accumulates of one token with the weights of a layer: projections and MLP."""
        if self.weights is not None:
            return self.weights[layer]
        keys, values = self.key_width, self.value_width
        attention = self.hidden * (self.heads + self.key_heads) * (keys + values)
        return attention + (3 if self.gated else 2) * self.hidden * self.mlp_width

    def pair_macs(self, layer: int) -> int:
        """Multiply-accumulates for each pair of a query and a key it meets: a logit, and a value to add."""
        if self.attends is not None and not self.attends[layer]:
            return 0
        return self.heads * (self.key_width + self.value_width)

    @property
    def kv_entries(self) -> int:
        """Numbers that a layer's cache holds for a token."""
        return self.key_heads * (self.key_width + self.value_width)


@dataclass(frozen=True)
class Tower:
    """A vision encoder and the projector behind it.

    Attributes:
        stack: its layers; no causal mask.
        patch_weights: weights of the embedding of one patch, 3·p²·width (times the frames that one patch covers).
        merge: patches that become one visual token.
        patches: patches of one image or tile where all are of one size; None for encoders that take any grid.
        extra: tokens that the encoder adds to an image's (CLS).
        projector: weights that each visual token is multiplied by on its way into the decoder.
        window: patches that attend to each other in windowed layers; None if all of an image do, everywhere.
        whole: the layers of a windowed encoder in which all of an image attend.
        joined: neighbouring frames of a video that become one.
        frame_vectors: vectors of a video's frame that meet the projector; as many as of an image if not given.
    """

    stack: Stack
    patch_weights: int
    projector: int
    merge: int = 1
    patches: int | None = None
    extra: int = 0
    window: int | None = None
    whole: tuple[int, ...] = ()
    joined: int = 1
    frame_vectors: int | None = None

    def images(self, visual: int) -> int:
        """Images or tiles of fixed size that ``visual`` tokens come from, rounded up; 1 for encoders of any grid."""
        return 1 if self.patches is None else -(-visual * self.merge // self.patches)


@dataclass(frozen=True)
class ModelShape:
    """A vision-language model: decoder, vocabulary, and vision tower where its layout is known."""

    text: Stack
    vocab: int = 0
    vision: Tower | None = None
    name: str = ""
