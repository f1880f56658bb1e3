"""Questions as text and pictures, answered in a session: what single questions and chats share."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trol_runtime import preprocess
from trol_runtime.array_types import Ids
from trol_runtime.errors import UsageError
from trol_runtime.generation import Generation, Step, choose_ids, search_ids
from trol_runtime.generation_config import GenerationConfig
from trol_runtime.model_config import ModelConfig
from trol_runtime.picture import load_picture
from trol_runtime.prompt_batch import Prompt
from trol_runtime.session import Rows, Session
from trol_runtime.tokenizer import TextTokenizer

Picture = str | os.PathLike[str] | bytes | BinaryIO | Image.Image


class Answerer:
    """The tokenizer and the picture pre-processing of one engine.

    default_new_tokens: how long an answer may become when nobody says so
    """

    def __init__(self, config: ModelConfig, tokenizer: TextTokenizer, default_new_tokens: int) -> None:
        self._default_new_tokens = default_new_tokens
        self._config = config
        self._tokenizer = tokenizer

    def crops(self, pictures: Sequence[Image.Image]) -> tuple[int, ...]:
        """Of each picture."""
        return tuple(preprocess.crops_per_picture(pictures, self._config.vision))

    def turn_ids(self, question: str, crops: Sequence[int], *, follows_answer: bool = False) -> Ids:
        """A whole prompt, or with `follows_answer` a further turn, int64 (s,); crops: of each picture.

        Raises UsageError for a wrong number of picture tags.
        """
        if not isinstance(question, str):
            raise UsageError(f"the prompt is a {type(question).__name__}, expected text")
        tokens_per_crop = self._config.vision.tokens_per_crop
        return self._tokenizer.encode_prompt(question, crops, tokens_per_crop, follows_answer=follows_answer)[0]

    def answer_ids(self, answer: Generation) -> Ids:
        """What a next turn follows, int64 (n,): the ids of an answer without the one that ended it.

        An answer that was cut elsewhere, by a stop text or by the caller, has the ids of the text that was shown.
        Phi-3 can write an image token; it is left out, as it would stand for a picture that is not there.
        """
        ids, ends = answer.token_ids, (*self._config.eos_token_ids, self._tokenizer.turn_end_id)
        ended = bool(ids) and ids[-1] in ends
        ids = ids[:-1] if ended else ids
        stopped = not ended and answer.finish_reason != "length"
        if stopped or (answer.config.stop and self._tokenizer.decode(ids) != answer.text):
            ids = self._tokenizer.encode_text(answer.text)
        return np.array([token_id for token_id in ids if token_id != self._config.image_token_id], np.int64)

    def encode(self, session: Session, pictures: Sequence[Image.Image]) -> tuple[NDArray[np.float32], dict[str, float]]:
        """Image embeddings, float32 (image tokens, hidden), and what they took: {"vision": ms}, nothing without any."""
        hidden = self._config.decoder.hidden_size
        if not pictures:
            return np.zeros((0, hidden), np.float32), {}
        begin = time.perf_counter()
        embeds = session.encode(preprocess.preprocess(pictures, self._config.vision))
        return embeds.reshape(-1, hidden), {"vision": 1e3 * (time.perf_counter() - begin)}

    def new_tokens(self, session: Session, ids: Ids, config: GenerationConfig) -> int:
        """How many tokens an answer to the prompt `ids` may have: what was asked for, as far as there is room.

        Raises LimitError where the engine has no room at all, or not for that many beams, UsageError where the least it
        must have is more than the most.
        """
        session.require_rows(1, config.num_beams)
        return config.new_tokens(self._default_new_tokens, session.room_behind(session.prompts(ids[None])))

    def answer(
        self, session: Session, prompt: Prompt, config: GenerationConfig, timings_ms: dict[str, float]
    ) -> Generation:
        """Run the prompt in `session`; the answer comes by iterating what is returned."""
        config = config.seeded()
        new_tokens = self.new_tokens(session, prompt.ids, config)
        begin = time.perf_counter()
        logits, rows, reused = session.begin(prompt.ids[None], prompt.image_embeds)
        timings_ms["prefill"] = 1e3 * (time.perf_counter() - begin)
        return Generation(
            steps=self._steps(rows, logits, config, new_tokens, said_before(self._config, [prompt.ids])),
            tokenizer=self._tokenizer,
            eos_token_ids=self._config.eos_token_ids,
            config=config,
            max_new_tokens=new_tokens,
            prompt_tokens=len(prompt),
            image_tokens=len(prompt.image_embeds),
            reused_tokens=int(reused[0]),
            timings_ms=timings_ms,
        )

    def _steps(
        self, rows: Rows, logits: NDArray[np.float32], config: GenerationConfig, new_tokens: int, said: Ids
    ) -> Generator[Step]:
        held_off = (*self._config.eos_token_ids, self._tokenizer.turn_end_id)
        if config.num_beams == 1:
            return choose_ids(rows, logits, config, max_new_tokens=new_tokens, held_off_ids=held_off, said=said)
        return search_ids(
            rows,
            logits,
            config,
            max_new_tokens=new_tokens,
            eos_token_ids=self._config.eos_token_ids,  # not the turn-end mark: so does the official search
            held_off_ids=held_off,
            pad_token_id=self._config.pad_token_id,
            said=said,
        )


def said_before(config: ModelConfig, prompts: Sequence[Ids]) -> Ids:
    """What a repetition penalty takes as said before the answers, int64 (rows, n), -1 in front of shorter prompts.

    The prompts; but nothing for Phi-3, whose official code generates from embeddings and so never sees their ids.
    """
    if config.arch == "phi3":
        return np.zeros((len(prompts), 0), np.int64)
    longest = max(map(len, prompts))
    return np.stack([np.pad(ids, (longest - len(ids), 0), constant_values=-1) for ids in prompts])


def load_pictures(images: Sequence[Picture], exif: bool = False) -> list[Image.Image]:
    """Pictures from files, bytes or Pillow; raises UsageError for what is no list, PictureError for what is none."""
    if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
        raise UsageError(f"images is a {type(images).__name__}, expected a list of pictures: images=[...]")
    return [load_picture(image, exif) for image in images]
