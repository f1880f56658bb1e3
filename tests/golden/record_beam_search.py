"""Record beam_search.json: what transformers 4.41 finds in 100 random searches over a `TableLanguageModel`.

From the repository, where torch 2.13.0 and transformers 4.41.2 are installed, and nothing of this project:

    PYTHONPATH=tests python -m golden.record_beam_search
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from golden.table_language_model import TableLanguageModel

OUTPUT = Path(__file__).with_name("beam_search.json")
SEARCHES = 100


class TableModel(PreTrainedModel):
    """The table as transformers wants it."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, table: TableLanguageModel) -> None:
        super().__init__(PretrainedConfig())
        self.table = table
        self.weight = torch.nn.Parameter(torch.zeros(1))  # its device is looked for

    @classmethod
    def can_generate(cls) -> bool:
        return True

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any
    ) -> dict[str, torch.Tensor]:
        return {"input_ids": input_ids}

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutputWithPast:
        return CausalLMOutputWithPast(logits=torch.from_numpy(self.table.logits(input_ids.numpy()))[:, None])


def random_search(seed: int) -> dict[str, Any]:
    """Options of one search."""
    choose = random.Random(seed)
    vocab = choose.choice([12, 30, 100])
    max_new_tokens = choose.randint(1, 20)
    eos_token_ids = choose.sample(range(vocab), choose.choice([0, 1, 1, 1, 2, 3]))
    return {
        "table": {
            "seed": seed,
            "vocab": vocab,
            "spread": choose.choice([0.3, 1.0, 3.0]),
            "favoured": eos_token_ids,
            "favour": choose.choice([-3.0, 0.0, 2.0, 5.0]),
        },
        "prompts": [choose.randint(1, 3), choose.randint(1, 6)],
        "config": {
            "num_beams": choose.randint(2, 6),
            "length_penalty": choose.choice([0.5, 1.0, 1.0, 2.0, -1.0]),
            "early_stopping": choose.random() < 0.4,
            "min_new_tokens": min(max_new_tokens, choose.choice([0, 0, 0, 2, 5])),
            "repetition_penalty": choose.choice([1.0, 1.0, 1.0, 1.3, 0.8]),
        },
        "max_new_tokens": max_new_tokens,
        "eos_token_ids": eos_token_ids,
        "pad_token_id": choose.randrange(vocab),
    }


def searched(search: dict[str, Any]) -> dict[str, Any]:
    """The search with what it found: token_ids of each prompt's answer, and its score."""
    table = TableLanguageModel(**search["table"])
    prompts = torch.from_numpy(table.prompts(*search["prompts"]))
    config = GenerationConfig(
        **search["config"],
        max_new_tokens=search["max_new_tokens"],
        eos_token_id=search["eos_token_ids"] or None,
        pad_token_id=search["pad_token_id"],
        return_dict_in_generate=True,
        output_scores=True,
        use_cache=False,
    )
    model: Any = TableModel(table)
    found = model.generate(prompts, generation_config=config, attention_mask=torch.ones_like(prompts))
    return {
        **search,
        "token_ids": found.sequences[:, prompts.shape[1] :].tolist(),
        "scores": found.sequences_scores.tolist(),
    }


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()  # it takes random prompts that end with the pad id for padded ones
    lines = [json.dumps(searched(random_search(seed))) for seed in range(SEARCHES)]
    OUTPUT.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
