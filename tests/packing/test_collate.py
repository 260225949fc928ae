import numpy as np
import torch

from llasa.packing.collate import PackingCollator
from llasa.types import Example


def example(*ids):
    labels = np.array(ids)
    labels[0] = -100
    return Example(np.array(ids), labels)


ROWS = [[example(5, 6, 7), example(8, 9)], [example(1, 2)]]


def test_flash_attention_gets_one_row_of_everything():
    """transformers finds the variable lengths by restarting positions in a batch of one row only."""
    from transformers.modeling_flash_attention_utils import _is_packed_sequence

    flat = PackingCollator(pad_token_id=0, multiple=4, flatten=True)(ROWS)
    assert flat["input_ids"].tolist() == [[5, 6, 7, 8, 9, 1, 2, 0]]
    assert flat["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 0]]
    assert _is_packed_sequence(flat["position_ids"], batch_size=1)
    stacked = PackingCollator(pad_token_id=0, multiple=4)(ROWS)
    assert not _is_packed_sequence(stacked["position_ids"], batch_size=2), "then flattening is no longer needed"


def test_rows_are_concatenated_with_restarting_positions_and_ignored_padding():
    batch = PackingCollator(pad_token_id=0, multiple=4)(ROWS)
    assert set(batch) == {"input_ids", "labels", "position_ids"}  # a mask would make examples leak
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 0, 0, 0], [1, 2, 0, 0, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9, -100, -100, -100], [-100, 2] + [-100] * 6]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4, 5]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_with_a_length_every_row_is_padded_to_just_that():
    """Fails when the length is rounded up, or only the batch's longest row decides."""
    batch = PackingCollator(pad_token_id=9, length=6, multiple=4)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 9], [1, 2, 9, 9, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9, -100], [-100, 2, -100, -100, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 2, 3]]


def test_padding_to_a_length_stays_when_the_rows_become_one():
    """Fails when flattening drops it: FlashAttention's `pad_to_max` would then be no padding at all."""
    flat = PackingCollator(pad_token_id=9, length=6, flatten=True)(ROWS)
    assert flat["input_ids"].tolist() == [[5, 6, 7, 8, 9, 9, 1, 2, 9, 9, 9, 9]]
    assert flat["labels"].tolist() == [[-100, 6, 7, -100, 9, -100, -100, 2, -100, -100, -100, -100]]
    assert flat["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 0, 1, 0, 1, 2, 3]]
