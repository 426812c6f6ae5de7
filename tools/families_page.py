"""``docs/families.md``: the table of model families with what its words mean."""

from __future__ import annotations

from prunekit.evaluation.families import HEADINGS, FamilyRecord, rows, summary
from prunekit.results.markdown import markdown_table

PAGE = """# Model families

`python -m tools.measure_families` writes this page; `python -m prunekit task=families` prints the same table.

The first table lists the model families that prunekit prunes exactly. A family is **exact** when a pruned model's
logits equal those of a masked one: the dense model whose layers from the cut on cannot see the removed tokens. The
measurement uses tiny random models in fp32, over attention implementations, three paddings, one cut and two. `prompt`
and `decode` are the largest differences of logits, at text positions of the prompt and in cached greedy decoding. The
tests require less than 1e-4.

{summary}

{table}

prunekit handles any other model type of `AutoModelForImageTextToText` in the same generic way, with a warning that
nobody has verified it. [processors.md](processors.md) lists how many visual tokens a picture has in the common
families.

## Remarks

- *scores from its attention layers only*: recurrent and convolution layers have no attention to read.
- *exact within the budget of its sparse attention*: with more tokens than its index may choose, the index chooses anew
  among the remaining tokens (one warning).
- *positions=keep only*: positions are triples, or not those of one plain rotary embedding.
- *no merging*: several hidden states stand for a token, so `reducer=merge` is refused.
- *no flash attention, no lookup decoding*: flash attention would count a sliding window over the remaining
  tokens, and a pruned window cannot be rewound.
- *figures of transformers …*: the newest release measured cannot run the family's dense model, as said above.
- *sequence made dense between layers*: the model's own code touches hidden states there, which costs two copies.

## Refused

{refused}
| blip-2, instructblip with a T5 | its visual tokens stand in an encoder's sequence, not in a decoder's |

Also refused, in one line at `apply` or at the first forward: flex attention; static, quantized and offloaded caches;
gradient checkpointing where a layer depends on true positions inside (Llama 4, Inkling, and Inkling 2
before transformers 5.24).
"""


def markdown(record: FamilyRecord) -> str:
    """``docs/families.md``."""
    return PAGE.format(
        summary="\n".join(f"- {line}." for line in summary(record)),
        table=markdown_table(HEADINGS, rows(record), align="l"),
        refused=markdown_table(("family", "reason"), sorted(record["refused"].items()), align="l"),
    )
