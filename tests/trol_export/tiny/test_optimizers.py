"""Muon for the matrices of layers, AdamW for everything else: who changes what, by how much, and what is decayed."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from short_recipe import short_recipe
from trol_export.tiny.optimizers import Optimizers
from trol_export.tiny.recipe import Phase, PhaseName, Recipe
from trol_export.tiny.training import Training

RATE, FACTOR = 0.01, 3.0
PHASE = Phase("decoder", 1, 1, RATE, warm_up=1, matrix_rate=FACTOR)


def parameters() -> dict[str, nn.Parameter]:
    """One of every sort, in a model's names."""
    torch.manual_seed(0)
    shapes = {
        "model.layers.0.attention.wo.ffn.weight": (24, 24),
        "model.layers.0.feed_forward.w1.ffn.weight": (48, 24),
        "model.layers.0.attention_norm.weight": (24,),
        "model.tok_embeddings.weight": (40, 24),
        "vit.embeddings.patch_embedding.weight": (24, 3, 2, 2),
        "output.weight": (40, 24),
        "vision_proj.0.bias": (24,),
    }
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


MATRICES = ["model.layers.0.attention.wo.ffn.weight", "model.layers.0.feed_forward.w1.ffn.weight"]
NOT_DECAYED = [
    "model.layers.0.attention_norm.weight",
    "model.tok_embeddings.weight",
    "vit.embeddings.patch_embedding.weight",
    "vision_proj.0.bias",
]


def changes(recipe: Recipe, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """What one step adds to every parameter; without a gradient named here, one of zeros."""
    named = parameters()
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    for name, parameter in named.items():
        parameter.grad = gradients.get(name, torch.zeros_like(parameter))
    Optimizers(named, recipe).step(RATE, PHASE)
    return {name: parameter.detach() - before[name] for name, parameter in named.items()}


def held(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


@pytest.mark.parametrize("phase", ["tower", "language", "words", "alignment", "decoder", "everything"])
def test_every_parameter_that_a_phase_trains_is_changed_by_one_of_both(phase: PhaseName) -> None:
    training = Training(short_recipe(phase))
    adamw, muon = held(training.optimizers.adamw), held(training.optimizers.muon)
    assert not adamw & muon
    assert adamw | muon == {id(parameter) for parameter in training.trained.values()}


def test_muon_holds_the_matrices_of_layers_and_nothing_else() -> None:
    named = parameters()
    assert held(Optimizers(named, short_recipe()).muon) == {id(named[name]) for name in MATRICES}


@pytest.mark.parametrize("name", MATRICES)
def test_a_matrix_moves_as_far_in_every_direction_however_small_its_gradient_there(name: str) -> None:
    shape = parameters()[name].shape
    directions = torch.linspace(0.1, 1.0, 24)  # of the gradient: ten times as much in the last as in the first
    left, _ = torch.linalg.qr(torch.randn(shape[0], 24))
    right, _ = torch.linalg.qr(torch.randn(24, 24))
    change = changes(short_recipe(weight_decay=0.0), {name: left @ torch.diag(directions) @ right})[name]
    length = FACTOR * RATE * 0.2 * math.sqrt(max(shape))
    moved = torch.linalg.svdvals(change) / length
    # Muon's five iterations in bfloat16 bring singular values to about 1, not to it.
    assert moved.min() > 0.5
    assert moved.max() < 1.5


def test_everything_else_moves_by_the_learning_rate_as_adamw_does_in_its_first_step() -> None:
    gradients = {name: torch.ones_like(parameter) for name, parameter in parameters().items()}
    found = changes(short_recipe(weight_decay=0.0), gradients)
    for name in found.keys() - set(MATRICES):
        assert torch.allclose(found[name], torch.full_like(found[name], -RATE), rtol=1e-4), name


def test_weights_decay_by_their_learning_rate_but_norms_biases_and_embeddings() -> None:
    decay = 0.5
    found, before = changes(short_recipe(weight_decay=decay), {}), parameters()
    for name in NOT_DECAYED:
        assert not found[name].any(), name
    shares = {"output.weight": RATE * decay} | dict.fromkeys(MATRICES, FACTOR * RATE * decay)
    for name, share in shares.items():
        assert torch.allclose(found[name], -share * before[name], rtol=1e-3), name


def test_a_step_of_one_that_took_over_the_state_is_that_of_the_one_that_gave_it() -> None:
    ones, others = parameters(), parameters()
    gradients = [{name: torch.randn_like(parameter) for name, parameter in ones.items()} for _ in range(3)]

    def step(optimizers: Optimizers, named: dict[str, nn.Parameter], number: int) -> None:
        for name, parameter in named.items():
            parameter.grad = gradients[number][name].clone()
        optimizers.step(RATE, PHASE)

    first = Optimizers(ones, short_recipe())
    for number in range(2):
        step(first, ones, number)
    with torch.no_grad():
        for name, parameter in others.items():
            parameter.copy_(ones[name])
    second = Optimizers(others, short_recipe())
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # as a file would keep it
    for optimizers, named in ((first, ones), (second, others)):
        step(optimizers, named, 2)
    for name in ones:
        assert torch.equal(ones[name], others[name]), name
