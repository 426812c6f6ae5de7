"""Folders of named shapes, for engines that open folders."""

import numpy as np
import pytest
from PIL import Image
from transformers import AutoConfig, AutoProcessor

from prunekit.bench.shape_folder import picture_size, prompt, write_shape
from prunekit.errors import PrunekitError


def test_the_processor_gives_what_the_config_expects(tmp_path):
    write_shape("small", tmp_path)
    config, processor = AutoConfig.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    width, height = picture_size("small")
    picture = Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8))
    inputs = processor(images=[picture], text=prompt(5, 7), return_tensors="pt")
    visual = inputs["input_ids"][0] == config.image_token_index
    assert visual.sum() == (336 // 14) ** 2 and visual.nonzero()[0] == 5 and len(visual) == 576 + 12
    words = inputs["input_ids"][0][~visual]
    assert words.min() >= 4 and words.max() < config.text_config.vocab_size - 64  # no special token, no unknown word


@pytest.mark.parametrize("name, word", [("qwen2.5-vl-7b", "llava-1.5-7b"), ("smal", "small")])
def test_a_shape_without_a_processor(tmp_path, name, word):
    with pytest.raises(PrunekitError, match=word):
        write_shape(name, tmp_path)
    assert not list(tmp_path.iterdir())
