"""TroL-tiny's sizes and how it is trained: everything that a run depends on beside the code and the drawn world."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trol_benchmarks.world.sampling import Kind
from trol_export.tiny.packing import Room
from trol_runtime.model_config import ClipVision, Decoder, ModelConfig, Rope

PhaseName = Literal["tower", "language", "words", "alignment", "decoder", "everything"]

WIDTH = 192
TOWER = ClipVision(
    hidden_size=WIDTH, intermediate_size=768, layers=6, heads=3, patch_size=14, grid=12, layer_norm_eps=1e-5
)


def model_config(vocab_size: int) -> ModelConfig:
    """TroL-tiny over a vocabulary of this size; <image> is the id behind it."""
    decoder = Decoder(
        hidden_size=WIDTH,
        intermediate_size=512,
        layers=4,
        heads=4,
        kv_heads=2,
        vocab_size=vocab_size,
        embedding_rows=vocab_size + 1,
        rms_norm_eps=1e-5,
        rope=Rope(1e6),  # as the released models: slow waves are left for what has nothing to do with places
        max_positions=2048,
        lora_rank=16,
    )
    return ModelConfig(
        arch="internlm2",
        vision=TOWER,
        decoder=decoder,
        image_token_id=vocab_size,
        eos_token_ids=(2,),
        bos_token_id=1,
        pad_token_id=2,
    )


def config_json(config: ModelConfig) -> dict[str, Any]:
    """config.json of such a model, in the layout of the released ones."""
    decoder, tower = config.decoder, config.vision
    return {
        "architectures": ["TroLForCausalLM"],
        "model_type": "internlm",
        "attn_implementation": "eager",
        "bias": False,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids[0],
        "pad_token_id": config.pad_token_id,
        "hidden_act": "silu",
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "max_position_embeddings": decoder.max_positions,
        "rms_norm_eps": decoder.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": decoder.rope.theta,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": decoder.vocab_size,
        "image_token_index": config.image_token_id,
        "vision_tower_config": {
            "hidden_size": tower.hidden_size,
            "intermediate_size": tower.intermediate_size,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "num_channels": 3,
            "patch_size": tower.patch_size,
            "image_size": tower.image_size,
            "grid": tower.grid,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": tower.layer_norm_eps,
        },
    }


ROOM = Room(prompts=192, answers=48)  # of about eight questions


@dataclass(frozen=True)
class Phase:
    """A stretch of the training with a learning rate of its own: linear warm-up, then a cosine down to `floor` of it.

    batch:   pictures a step
    kinds:   of scenes, each as often as it stands here
    crowded: share of the pictures that are filled with things and letters instead, in the tower phase
    unnamed: share of the pictures that are drawn in colours without a name, in the tower phase
    shown:   in how many steps of the tower phase a picture is shown: drawing one takes longer than learning from it
    matrix_rate: how many times the learning rate the layers' matrices learn at; at the tower's the language model
             learns too little
    """

    name: PhaseName
    steps: int
    batch: int
    learning_rate: float
    warm_up: int
    floor: float = 0.02
    kinds: tuple[Kind, ...] = ("objects",) * 10 + ("text",) * 8 + ("chart",) * 2
    crowded: float = 0.0
    unnamed: float = 0.0
    shown: int = 1
    matrix_rate: float = 1.5


@dataclass(frozen=True)
class Recipe:
    """A training run.

    seed:      of the first weights and of every scene
    patch_share: weight of the patches' labels in the loss, beside answers, where tower or projector learn by them
    clue_share: weight of the clues in the loss, beside answers
    questions: drawn for a picture, of which there is room for most
    form_shares: how likely each form of a question is: lettered options, which are learned last, more than in the test
    betas, momentum: of AdamW, of Muon
    traversal: False trains the same network with one pass over the prompt, as any decoder
    """

    phases: tuple[Phase, ...]
    seed: int = 0
    patch_share: float = 0.5
    clue_share: float = 0.3
    questions: int = 12
    form_shares: tuple[float, float, float] = (0.35, 0.25, 0.4)
    room: Room = ROOM
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    momentum: float = 0.95
    gradient_norm: float = 1.0
    traversal: bool = True


# The released models begin with a tower and a language model that others trained; here both begin with nothing. So
# three phases come first that stand in for those: the tower learns what the patches of a picture show, the language
# model to answer questions about pictures that are described to it, the projector which words name what the tower
# sees. Then come the paper's two steps (section 3.3): first projector and gate, then all; of the second step the tower
# sits out most, in which it would forget more than it learns.
RELEASED = Recipe(
    phases=(
        Phase(
            "tower",
            5_000,
            batch=18,
            learning_rate=6e-4,
            warm_up=100,
            crowded=0.6,
            unnamed=0.35,
            shown=2,
            matrix_rate=6.0,
            kinds=("objects",) * 6 + ("text",) * 3 + ("chart",),
        ),
        Phase("language", 350, batch=16, learning_rate=1e-3, warm_up=20),
        Phase("words", 300, batch=16, learning_rate=3e-3, warm_up=20),
        Phase("alignment", 100, batch=16, learning_rate=3e-4, warm_up=20),
        Phase("decoder", 1900, batch=16, learning_rate=1e-3, warm_up=50, floor=0.15),
        Phase("everything", 900, batch=16, learning_rate=2e-4, warm_up=50),
    )
)


def recipe_json(recipe: Recipe) -> dict[str, Any]:
    """A recipe as it is read back from JSON, tuples as lists."""
    return json.loads(json.dumps(asdict(recipe)))
