"""Where the parts of a model are: paths into it, which together hold every tensor it computes with."""

from __future__ import annotations

import pytest

from official_model import OfficialModel
from trol_graphs.model import TroLModel, build_model


@pytest.fixture
def model(official: OfficialModel) -> TroLModel:
    return build_model(official.config)


def test_every_tensor_belongs_to_exactly_one_part(model: TroLModel) -> None:
    parts = [*model.VISION, model.EMBEDDING, model.LAYERS, *model.HEAD, model.GATE]
    for name, _ in model.named_parameters():
        assert len([part for part in parts if name.startswith(f"{part}.")]) == 1, name


def test_the_parts_in_use_are_the_submodules_at_their_paths(model: TroLModel) -> None:
    assert model.embedding is model.get_submodule(model.EMBEDDING)
    assert model.vision_proj is model.get_submodule(model.VISION[1])
    assert model.trol_gating is model.get_submodule(model.GATE)
    for index, layer in enumerate(model.layers):
        assert layer is model.get_submodule(f"{model.LAYERS}.{index}")
    assert len(model.layers) == model.config.decoder.layers


def test_a_model_that_was_built_has_shapes_and_no_memory(model: TroLModel) -> None:
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert not any(parameter.requires_grad for parameter in model.parameters())
