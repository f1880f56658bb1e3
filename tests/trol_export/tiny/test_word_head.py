"""How image embeddings are held against the words of the language model."""

from __future__ import annotations

import torch

from trol_export.tiny.patch_labels import LABELS
from trol_export.tiny.word_head import WordHead

VOCABULARY = {"red": 3, "star": 0, "A": 2}


def head_and_table() -> tuple[WordHead, torch.Tensor]:
    torch.manual_seed(0)
    head = WordHead(VOCABULARY, hidden_size=192)
    torch.nn.init.normal_(head.own)
    return head, torch.randn(5, 192, requires_grad=True)


def test_an_embedding_that_is_two_words_is_told_from_all_others() -> None:
    head, table = head_and_table()
    both = sum(table[VOCABULARY[word]].detach() / table[VOCABULARY[word]].norm() for word in ("red", "star"))
    (logits,) = head(3 * both[None], table)
    assert {label for label, logit in zip(LABELS, logits.tolist(), strict=True) if logit > 0} == {"red", "star"}


def test_a_label_that_is_no_word_has_a_direction_of_its_own() -> None:
    head, table = head_and_table()
    place = LABELS.index("thing 2")
    (logits,) = head(3 * head.own[place : place + 1].detach() / head.own[place].norm(), table)
    assert logits.argmax() == place


def test_words_take_no_gradient_and_image_embeddings_do() -> None:
    head, table = head_and_table()
    embeds = torch.randn(7, 192, requires_grad=True)
    head(embeds, table).sum().backward()
    assert table.grad is None
    assert embeds.grad is not None
    assert embeds.grad.any()


def test_nothing_shows_nothing() -> None:
    head, table = head_and_table()
    assert (head(torch.zeros(1, 192), table) < 0).all()
