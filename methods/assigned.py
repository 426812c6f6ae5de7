"""A reducer for selectors that say which kept token each of the others goes into, or that it is lost."""

from __future__ import annotations

from dataclasses import dataclass

import prunekit


@prunekit.register("reducer", "assigned")
@dataclass
class Assigned(prunekit.Reducer):
    """What goes is averaged into the token to which the selector has assigned it, by size; what it has assigned to none
    is gone. The selector leaves that as ``view.notes["assigned"]``, long [B, N], -1 for none.

    Args:
        proportional: a token counts in the attention of later layers like all that it stands for.
    """

    proportional: bool = False

    def reduce(self, *, view, tokens, sizes, kept, alive, **rest) -> prunekit.Reduced:
        if (target := view.notes.pop("assigned", None)) is None:
            raise prunekit.PrunekitError("reducer 'assigned': the selector assigns no token; tokencarve and dbdpc do")
        return prunekit.Reduced(*prunekit.ops.merge_into(tokens, sizes, target, kept, alive), sources=target)
