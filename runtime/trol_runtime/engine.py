"""`TroL`: an engine file with its tokenizer, picture pre-processing and sessions; the Python interface of the runtime.

    from trol_runtime import TroL
    model = TroL.load("engine.plan")
    for piece in model.generate("What is in the picture?", images=["x.png"], stream=True):
        print(piece, end="", flush=True)

Text goes through `generate`; ids and arrays through `generate_ids`, `preprocess` and `session`.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Literal, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trol_runtime import generation, preprocess
from trol_runtime.bundle import Bundle
from trol_runtime.errors import UsageError
from trol_runtime.generation import DEFAULT_MAX_NEW_TOKENS, Generation
from trol_runtime.memory_need import require_memory
from trol_runtime.picture import load_picture
from trol_runtime.session import Session
from trol_runtime.tokenizer import TextTokenizer

TOKENIZER_ENTRY = "tokenizer.json"

Picture = str | os.PathLike[str] | bytes | BinaryIO | Image.Image


class TroL:
    """One loaded engine, whose sessions share its weights.

    session: the caller's, used by `generate_ids` too; every `generate` has one of its own, so that answers can overlap
    default_new_tokens: how long an answer may become when nobody says so
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        from trol_runtime.cpu_backend import CpuBackend

        if threads is not None:
            _require_count("threads", threads)
        require_memory(bundle.manifest)
        self.manifest = bundle.manifest
        self.config = bundle.manifest.model
        self._backend = CpuBackend(bundle, threads)
        prompt = bundle.manifest.prompt
        self._tokenizer = TextTokenizer(bundle.read(TOKENIZER_ENTRY), prompt) if prompt else None
        self.default_new_tokens = int(bundle.manifest.generation.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS))
        self.session = self.new_session()

    @classmethod
    def load(cls, path: str | os.PathLike[str], backend: str = "cpu", threads: int | None = None) -> TroL:
        """Open and verify an engine file and map its weights.

        threads: cores of one run; None: all physical ones.
        Raises EngineFileError (damaged, other version), LimitError (too little memory; the need is in the message),
        MissingExtraError (no onnxruntime), UsageError (unknown backend, threads below 1).
        """
        if backend != "cpu":
            raise UsageError(f"unknown backend {backend!r}; this version runs engines on: cpu")
        return cls(Bundle.open(path), threads)

    def new_session(self) -> Session:
        """A further conversation on the same weights, with a cache of its own."""
        return Session(self._backend, self.config, self.manifest.limits)

    def preprocess(self, images: Sequence[Picture]) -> NDArray[np.float32]:
        """Pixel values of all crops of all pictures, float32 (crops, 3, h, w), in prompt order."""
        return preprocess.preprocess(_load_pictures(images), self.config.vision)

    def crops_per_image(self, images: Sequence[Picture]) -> list[int]:
        """How many of those crops belong to each picture."""
        return preprocess.crops_per_picture(_load_pictures(images), self.config.vision)

    def generate_ids(
        self,
        input_ids: NDArray[np.int64],
        image_embeds: NDArray[np.float32] | None = None,
        attention_mask: NDArray[np.int64] | None = None,
        *,
        max_new_tokens: int | None = None,
        eos_token_id: int | Sequence[int] | None = None,
    ) -> NDArray[np.int64]:
        """Greedy new ids of every row, int64 (batch, steps), eos included, right-padded with the pad id.

        Inputs as in `Session.prefill`. eos_token_id, max_new_tokens: None takes the engine's own. No more steps than
        the longest row leaves room for, `session.room_behind(session.prompts(input_ids, attention_mask))`; a
        UserWarning says so when max_new_tokens asked for more.
        Raises UsageError, LimitError.
        """
        wanted = self._new_tokens(max_new_tokens)
        room = self.session.room_behind(self.session.prompts(input_ids, attention_mask))
        new_tokens = min(wanted, room)
        if max_new_tokens is not None:
            self._warn_if_clipped(max_new_tokens, new_tokens)
        logits = self.session.prefill(input_ids, image_embeds, attention_mask)
        eos = self.config.eos_token_ids if eos_token_id is None else np.atleast_1d(eos_token_id).tolist()
        steps = generation.greedy_ids(self.session, logits, new_tokens)
        return generation.collect_ids(steps, len(logits), eos, self.config.pad_token_id)

    @overload
    def generate(
        self,
        prompt: str,
        images: Sequence[Picture] = ...,
        *,
        max_new_tokens: int | None = ...,
        exif: bool = ...,
        stream: Literal[False] = ...,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: str,
        images: Sequence[Picture] = ...,
        *,
        max_new_tokens: int | None = ...,
        exif: bool = ...,
        stream: Literal[True],
    ) -> Iterator[str]: ...

    def generate(
        self,
        prompt: str,
        images: Sequence[Picture] = (),
        *,
        max_new_tokens: int | None = None,
        exif: bool = False,
        stream: bool = False,
    ) -> str | Iterator[str]:
        """The answer to one question about any number of pictures, whole or, with `stream`, piece by piece.

        prompt: may hold one `<image>` per picture; with none, the pictures go in front
        exif: turn pictures upright
        max_new_tokens: None takes the engine's default; clipped to the room that the prompt leaves in the engine, which
          a UserWarning says when it was asked for; what `start` returns holds the number
        Raises UsageError, PictureError and LimitError.
        """
        answer = self.start(prompt, images, max_new_tokens=max_new_tokens, exif=exif)
        if max_new_tokens is not None:
            self._warn_if_clipped(max_new_tokens, answer.max_new_tokens)
        return iter(answer) if stream else "".join(answer)

    def start(
        self,
        prompt: str,
        images: Sequence[Picture] = (),
        *,
        max_new_tokens: int | None = None,
        exif: bool = False,
    ) -> Generation:
        """`generate` for those who ask more than the text: pictures and prompt are run, the text comes by iterating.

        Never warns: `max_new_tokens` of the result is what it was clipped to.
        """
        if self._tokenizer is None:
            raise UsageError("the engine has no tokenizer; use generate_ids, or export without --no-tokenizer")
        max_new_tokens = self._new_tokens(max_new_tokens)
        pictures = _load_pictures(images, exif)
        vision = self.config.vision
        crops = preprocess.crops_per_picture(pictures, vision)
        ids = self._tokenizer.encode_prompt(prompt, crops, vision.tokens_per_crop)
        session = self.new_session()
        new_tokens = min(max_new_tokens, session.room_behind(session.prompts(ids)))
        timings_ms: dict[str, float] = {}
        embeds = None
        if pictures:
            begin = time.perf_counter()
            embeds = session.encode(preprocess.preprocess(pictures, vision))
            timings_ms["vision"] = 1e3 * (time.perf_counter() - begin)
        begin = time.perf_counter()
        logits = session.prefill(ids, embeds)
        timings_ms["prefill"] = 1e3 * (time.perf_counter() - begin)
        return Generation(
            session=session,
            tokenizer=self._tokenizer,
            first_logits=logits,
            eos_token_ids=self.config.eos_token_ids,
            max_new_tokens=new_tokens,
            prompt_tokens=ids.shape[1],
            image_tokens=sum(crops) * vision.tokens_per_crop,
            timings_ms=timings_ms,
        )

    def _new_tokens(self, max_new_tokens: int | None) -> int:
        """What was asked for, or the engine's default."""
        if max_new_tokens is None:
            return self.default_new_tokens
        _require_count("max_new_tokens", max_new_tokens)
        return int(max_new_tokens)

    def _warn_if_clipped(self, wanted: int, new_tokens: int) -> None:
        """For public methods to call directly: the warning points at their caller."""
        if new_tokens < wanted:
            warnings.warn(
                f"max_new_tokens is clipped from {wanted} to {new_tokens}: the engine holds "
                f"{self.manifest.limits.max_seq} tokens, prompt included",
                stacklevel=3,
            )


def _load_pictures(images: Sequence[Picture], exif: bool = False) -> list[Image.Image]:
    if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
        raise UsageError(f"images is a {type(images).__name__}, expected a list of pictures: images=[...]")
    return [load_picture(image, exif) for image in images]


def _require_count(name: str, value: object) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} is {value!r}, expected a whole number, 1 or more")
