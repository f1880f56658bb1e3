"""What is trained is what runs: packed rows against the eager session, which computes one prompt at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from short_recipe import short_recipe
from trol_benchmarks.world.questions import Question
from trol_export.tiny.lessons import Lessons
from trol_export.tiny.packing import IGNORED, Batch, Packer, Room
from trol_export.tiny.teacher_forcing import answer_loss, layer_outputs, predictions, right_answers
from trol_export.tiny.training import CLOSED_GATE_BIAS
from trol_graphs.eager import EagerSession, eager_model
from trol_graphs.model import TroLModel, expected_tensors
from trol_graphs.ops import gate_value
from trol_runtime.model_config import ModelConfig

COLOUR = Question("colour", "plain", "What colour is the star?", "red")
WORD = Question("word", "letter", "Which word is printed?\nA. BOAT\nB. CAT\nAnswer with the letter.", "B")
SHAPE = Question("shape", "short", "Which shape is red?\nAnswer the question using a single word or phrase.", "star")
DESCRIPTION = Question("description", "plain", "Describe the picture.", "a red star, a blue ring and the word BOAT")
# Several questions a row, and rows that are filled up at the end of prompts and of answers.
ROWS = [[COLOUR, WORD, DESCRIPTION, SHAPE], [DESCRIPTION], [SHAPE, COLOUR], []]
ROOM = Room(prompts=120, answers=32)

# Everything is fp32; sums in another order, for other shapes, change logits of spread 1 by some 1e-6.
MOST_OFF = 2e-5


class Small(NamedTuple):
    """A model as small as can be over the real vocabulary, packers for it, and a picture for each of ROWS."""

    model: TroLModel
    packer: Packer
    text_packer: Packer
    embeds: Tensor  # (rows * image tokens, hidden)

    def predictions(self, batch: Batch, *, traversal: bool = True) -> tuple[Tensor, Tensor]:
        embeds = self.embeds if self.model.config.image_token_id in batch.ids else None
        outputs = layer_outputs(self.model, batch, embeds, traversal=traversal)
        return predictions(self.model, batch, outputs[-1])

    def prompt(self, packer: Packer, question: Question) -> np.ndarray:
        crops = [1] if packer.image_tokens else []
        return packer.tokenizer.encode_prompt(question.text, crops, packer.image_tokens)

    def picture(self, packer: Packer, row: int) -> np.ndarray | None:
        if not packer.image_tokens:
            return None
        return self.embeds.reshape(len(ROWS), packer.image_tokens, -1)[row].detach().numpy()


def small_config(lessons: Lessons) -> ModelConfig:
    """Two layers, two query heads to a key/value head, nine image tokens."""
    vision = replace(lessons.config.vision, hidden_size=16, intermediate_size=24, layers=1, heads=2, grid=3)
    decoder = replace(lessons.config.decoder, hidden_size=32, intermediate_size=48, layers=2, heads=4, lora_rank=3)
    return replace(lessons.config, vision=vision, decoder=decoder)


def drawn(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Weights that keep the spread of what they are applied to; lora_B and gate are none of them 0."""
    return torch.from_numpy(rng.standard_normal(shape, np.float32)) / (shape[-1] ** 0.5 if len(shape) > 1 else 1)


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    return Lessons(short_recipe())


@pytest.fixture
def small(lessons: Lessons) -> Small:
    config = small_config(lessons)
    rng = np.random.default_rng(0)
    weights = {name: drawn(shape, rng) for name, shape in expected_tensors(config).items()}
    image_tokens = config.vision.tokens_per_crop
    embeds = torch.from_numpy(rng.standard_normal((len(ROWS) * image_tokens, config.decoder.hidden_size), np.float32))
    packer = Packer(lessons.packer.tokenizer, image_tokens, config.image_token_id)
    return Small(eager_model(config, weights.__getitem__), packer, lessons.text_packer, embeds)


@pytest.fixture(params=["packer", "text_packer"])
def packer(request: pytest.FixtureRequest, small: Small) -> Packer:
    return getattr(small, request.param)


def asked_questions() -> Iterator[tuple[int, int, Question]]:
    for row, questions in enumerate(ROWS):
        for number, question in enumerate(questions):
            yield row, number, question


def of_question(found: tuple[Tensor, Tensor], batch: Batch, row: int, number: int) -> Tensor:
    """The logits from which a packed row predicts an answer, (answer, vocab)."""
    logits, asked = found
    mine = (batch.questions.reshape(-1)[asked] == number) & (asked // batch.ids.shape[1] == row)
    return logits[mine]


def run_alone(small: Small, packer: Packer, row: int, question: Question) -> Tensor:
    """The logits of a prefill of the prompt and of a decode step for each right answer token, (answer, vocab)."""
    session = EagerSession(small.model)
    logits = [session.prefill(small.prompt(packer, question), small.picture(packer, row))]
    logits += [session.decode(np.array([token])) for token in packer.tokenizer.encode_text(question.answer)]
    return torch.from_numpy(np.concatenate(logits))


def test_the_small_model_leaves_nothing_of_a_layer_out(small: Small) -> None:
    gate = small.model.trol_gating
    values = gate_value(small.embeds, gate.weight, gate.bias)
    assert values.min() < 0.2
    assert values.max() > 0.8
    assert all(parameter.any() for parameter in small.model.parameters())


def test_every_answer_token_of_a_packed_row_is_predicted_as_if_its_prompt_were_run_alone(
    small: Small, packer: Packer
) -> None:
    batch = packer.pack(ROWS, ROOM)
    found = small.predictions(batch)
    assert found[0].dtype == torch.float32
    for row, number, question in asked_questions():
        torch.testing.assert_close(
            of_question(found, batch, row, number), run_alone(small, packer, row, question), rtol=0, atol=MOST_OFF
        )


def test_predictions_come_in_order_for_exactly_the_tokens_that_have_a_target(small: Small, packer: Packer) -> None:
    batch = packer.pack(ROWS, ROOM)
    logits, asked = small.predictions(batch)
    assert asked.tolist() == torch.nonzero(batch.targets.reshape(-1) != IGNORED).flatten().tolist()
    assert logits.shape == (len(asked), small.model.config.decoder.vocab_size)


def test_a_picture_matters_to_its_own_row_alone(small: Small) -> None:
    batch = small.packer.pack(ROWS, ROOM)
    before = small.predictions(batch)
    changed = small.embeds.clone()
    changed[: small.packer.image_tokens] *= -1
    after = small._replace(embeds=changed).predictions(batch)
    for row, number, _ in asked_questions():
        difference = of_question(after, batch, row, number) - of_question(before, batch, row, number)
        assert (difference.abs().max() > 0.01) == (row == 0)


# Without traversal


def close_gate(model: TroLModel) -> None:
    with torch.no_grad():
        model.trol_gating.weight.zero_()
        model.trol_gating.bias.fill_(CLOSED_GATE_BIAS)


def test_a_closed_gate_is_0_whatever_it_reads(small: Small) -> None:
    close_gate(small.model)
    gate = small.model.trol_gating
    assert not gate_value(1e6 * small.embeds, gate.weight, gate.bias).any()


def test_training_without_traversal_is_what_a_model_with_a_closed_gate_runs(small: Small, packer: Packer) -> None:
    batch = packer.pack(ROWS, ROOM)
    without = small.predictions(batch, traversal=False)
    open_gate, _ = small.predictions(batch)
    assert (open_gate - without[0]).abs().max() > 0.1
    close_gate(small.model)
    closed, _ = small.predictions(batch)
    assert closed.equal(without[0])
    for row, number, question in asked_questions():
        torch.testing.assert_close(
            of_question(without, batch, row, number), run_alone(small, packer, row, question), rtol=0, atol=MOST_OFF
        )


# Loss and answers


def test_the_loss_is_the_weighted_mean_of_the_surprises(small: Small, packer: Packer) -> None:
    batch = packer.pack(ROWS, ROOM)
    logits, asked = small.predictions(batch)
    surprises, weights = [], []
    for row, number, question in asked_questions():
        answer = [*packer.tokenizer.encode_text(question.answer), packer.tokenizer.turn_end_id]
        shares = of_question((logits, asked), batch, row, number).double().softmax(-1)
        surprises += [-shares[i, token].log().item() for i, token in enumerate(answer)]
        weights += [len(answer) ** -0.5] * len(answer)
    assert answer_loss(logits, asked, batch).item() == pytest.approx(np.average(surprises, weights=weights), rel=1e-5)


def learn_some(small: Small, batch: Batch) -> tuple[Tensor, Tensor]:
    """Train until some of the answers are right and some are not; what is predicted then."""
    optimizer = torch.optim.Adam(small.model.requires_grad_(True).parameters(), lr=0.01)
    for _ in range(50):
        found = small.predictions(batch)
        right = right_answers(*found, batch).values()
        if any(right) and not all(right):
            return found
        optimizer.zero_grad()
        answer_loss(*found, batch).backward()
        optimizer.step()
    pytest.fail("no answer was learnt")


def test_an_answer_is_right_exactly_where_greedy_decoding_gives_it(small: Small) -> None:
    packer = small.packer
    batch = packer.pack(ROWS, ROOM)
    found = right_answers(*learn_some(small, batch), batch)
    assert found.keys() == {(row, number) for row, number, _ in asked_questions()}
    for row, number, question in asked_questions():
        answer = [*packer.tokenizer.encode_text(question.answer), packer.tokenizer.turn_end_id]
        greedy = EagerSession(small.model).greedy(
            small.prompt(packer, question), small.picture(packer, row), len(answer)
        )
        assert found[row, number] == (greedy[0].tolist() == answer)


def test_one_wrong_token_makes_an_answer_wrong_and_no_other() -> None:
    batch = replace(
        Batch(0, 2, *[torch.zeros(1, 1)] * 6),
        ids=torch.zeros(2, 4, dtype=torch.int64),
        targets=torch.tensor([[1, 2, IGNORED, 1], [1, IGNORED, IGNORED, 2]]),
        questions=torch.tensor([[0, 0, -1, 2], [0, -1, -1, 1]]),
    )
    asked = torch.tensor([0, 1, 3, 4, 7])
    logits = torch.eye(3)[[1, 0, 1, 1, 2]]
    assert right_answers(logits, asked, batch) == {(0, 0): False, (0, 2): True, (1, 0): True, (1, 1): True}


# Gradients


def gradients(small: Small, batch: Batch, *, traversal: bool) -> dict[str, bool]:
    """Of which of the decoder's parameters and of the picture the loss depends, by name."""
    small.model.requires_grad_(True)
    small.embeds.requires_grad_(True)
    answer_loss(*small.predictions(batch, traversal=traversal), batch).backward()
    names = dict(small.model.named_parameters(), picture=small.embeds)
    return {
        name: parameter.grad is not None and bool(parameter.grad.any())
        for name, parameter in names.items()
        if not name.startswith(("vit.", "vision_proj."))
    }


def test_the_loss_depends_on_every_parameter_of_the_decoder_and_on_the_picture(small: Small) -> None:
    found = gradients(small, small.packer.pack(ROWS, ROOM), traversal=True)
    assert [name for name, depends in found.items() if not depends] == []


def test_without_traversal_it_does_not_depend_on_the_gate_nor_on_what_the_last_layer_makes_of_the_picture(
    small: Small,
) -> None:
    found = gradients(small, small.packer.pack(ROWS, ROOM), traversal=False)
    last = f"model.layers.{small.model.config.decoder.layers - 1}."
    # Nothing comes after the last pass that could look at an image token: only its key and value count.
    unread = {name for name in found if name.startswith(last) and "lora" in name and "wqkv" not in name}
    assert {name for name, depends in found.items() if not depends} == unread | {
        "trol_gating.weight",
        "trol_gating.bias",
    }


def test_without_a_picture_lora_has_nothing_to_learn(small: Small) -> None:
    found = gradients(small, small.text_packer.pack(ROWS, ROOM), traversal=True)
    assert {name for name, depends in found.items() if not depends} == {
        *(name for name in found if "lora" in name),
        "picture",
    }
