"""`TroL`: an engine file with its tokenizer, picture pre-processing and sessions; the Python interface of the runtime.

    from trol_runtime import TroL
    model = TroL.load("engine.plan")
    for piece in model.generate("What is in the picture?", images=["x.png"], stream=True):
        print(piece, end="", flush=True)

Text goes through `generate`; ids and arrays through `generate_ids`, `preprocess` and `session`.
"""

from __future__ import annotations

import os
import reprlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from trol_runtime import preprocess
from trol_runtime.answering import Answerer, Picture, load_pictures, said_before
from trol_runtime.backends import CPU, open_backend, require_known_backend
from trol_runtime.beam_search import beam_search
from trol_runtime.bundle import Bundle
from trol_runtime.chat import Chat
from trol_runtime.completion import Completion
from trol_runtime.errors import UsageError
from trol_runtime.generation import DEFAULT_MAX_NEW_TOKENS, Generation, choose_ids, collect
from trol_runtime.generation_config import GenerationConfig
from trol_runtime.model_config import ModelConfig
from trol_runtime.one_line import one_line
from trol_runtime.prompt_batch import Prompt
from trol_runtime.session import Session
from trol_runtime.tokenizer import TextTokenizer

TOKENIZER_ENTRY = "tokenizer.json"


class TroL:
    """One loaded engine, whose sessions share its weights; its methods may be called from several threads at once.

    session: the caller's; every answer otherwise has a session of its own, so that answers can overlap
    default_new_tokens: how long an answer may become when nobody says so

    How an answer is generated is a `GenerationConfig`, given as `config`, as options with the names of its fields
    (`num_beams=5`), or both: options go first. Without either it is greedy.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        prefill_chunk: int | None = None,
        backend: str = CPU,
        trust_plans: bool = False,
    ) -> None:
        for name, count in (("threads", threads), ("prefill_chunk", prefill_chunk)):
            if count is not None:
                _require_count(name, count)
        self.manifest = bundle.manifest
        self.config = bundle.manifest.model
        self.default_new_tokens = int(bundle.manifest.generation.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS))
        self._backend = open_backend(backend, bundle, threads, trust_plans)
        self._prefill_chunk = prefill_chunk
        prompt = bundle.manifest.prompt
        tokenizer = TextTokenizer(bundle.read(TOKENIZER_ENTRY), prompt) if prompt else None
        self._answerer = Answerer(self.config, tokenizer, self.default_new_tokens) if tokenizer else None
        self.session = self.new_session()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        backend: str = CPU,
        threads: int | None = None,
        prefill_chunk: int | None = None,
        trust_plans: bool = False,
    ) -> TroL:
        """Open and verify an engine file and load its weights.

        backend: "cpu", "cuda", or "tensorrt-rtx" or "tensorrt", whose plans are built first where the file has none
        threads: cores of one run on the CPU; None: all physical ones.
        trust_plans: run plans that were not built on this machine: they are code
        prefill_chunk: read prompts in parts of this many tokens, which bounds the memory of activations; None: at once
        Raises EngineFileError (damaged, other version), LimitError (too little memory; the need is in the message),
        MissingExtraError (a package of the backend), TrolError (this machine does not run it, or no plan fits),
        UsageError (unknown backend, threads or prefill_chunk below 1).
        """
        require_known_backend(backend)
        return cls(Bundle.open(path), threads, prefill_chunk, backend, trust_plans)

    def new_session(self, keep_prefix: bool = False, prefill_chunk: int | None = None) -> Session:
        """A further conversation on the same weights, with a cache of its own.

        keep_prefix: twice the cache, and prompts that begin with what the session holds cost only what is new
        prefill_chunk: None takes that of `load`
        """
        if prefill_chunk is not None:
            _require_count("prefill_chunk", prefill_chunk)
        chunk = self._prefill_chunk if prefill_chunk is None else prefill_chunk
        return Session(self._backend, self.config, self.manifest.limits, keep_prefix, chunk)

    def chat(self, *, keep_prefix: bool = True, config: GenerationConfig | None = None, **options: Any) -> Chat:
        """A conversation of several turns; keep_prefix=False halves its cache and reads every turn from the start."""
        config = _merged(config, options)
        return Chat(self._text, self.new_session(keep_prefix), config)

    def preprocess(self, images: Sequence[Picture]) -> NDArray[np.float32]:
        """Pixel values of all crops of all pictures, float32 (crops, 3, h, w), in prompt order."""
        return preprocess.preprocess(load_pictures(images), self.config.vision)

    def crops_per_image(self, images: Sequence[Picture]) -> list[int]:
        """How many of those crops belong to each picture."""
        return preprocess.crops_per_picture(load_pictures(images), self.config.vision)

    def generate_ids(
        self,
        input_ids: NDArray[np.int64],
        image_embeds: NDArray[np.float32] | None = None,
        attention_mask: NDArray[np.int64] | None = None,
        *,
        eos_token_id: int | Sequence[int] | None = None,
        session: Session | None = None,
        config: GenerationConfig | None = None,
        **options: Any,
    ) -> NDArray[np.int64]:
        """New ids of every row, int64 (batch, steps), eos included, right-padded with the pad id.

        Inputs as in `Session.prefill`. eos_token_id: what ends a row; None takes the engine's own, and nothing else
        does. No more steps than the longest row leaves room for,
        `session.room_behind(session.prompts(input_ids, attention_mask))`; a UserWarning says so when max_new_tokens
        asked for more.
        session: goes on in this one, which may know the beginning of the prompts; None: in a new one
        Raises UsageError, LimitError.
        """
        config = _merged(config, options)
        return self._complete(input_ids, image_embeds, attention_mask, eos_token_id, session, config).token_ids

    def complete(
        self,
        input_ids: NDArray[np.int64],
        image_embeds: NDArray[np.float32] | None = None,
        attention_mask: NDArray[np.int64] | None = None,
        *,
        eos_token_id: int | Sequence[int] | None = None,
        session: Session | None = None,
        config: GenerationConfig | None = None,
        **options: Any,
    ) -> Completion:
        """`generate_ids` for those who ask more than the ids: their log-probabilities, and a score per row."""
        config = _merged(config, options)
        return self._complete(input_ids, image_embeds, attention_mask, eos_token_id, session, config)

    @overload
    def generate(
        self,
        prompt: str,
        images: Sequence[Picture] = ...,
        *,
        exif: bool = ...,
        session: Session | None = ...,
        config: GenerationConfig | None = ...,
        stream: Literal[False] = ...,
        **options: Any,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: str,
        images: Sequence[Picture] = ...,
        *,
        exif: bool = ...,
        session: Session | None = ...,
        config: GenerationConfig | None = ...,
        stream: Literal[True],
        **options: Any,
    ) -> Iterator[str]: ...

    def generate(
        self,
        prompt: str,
        images: Sequence[Picture] = (),
        *,
        exif: bool = False,
        session: Session | None = None,
        config: GenerationConfig | None = None,
        stream: bool = False,
        **options: Any,
    ) -> str | Iterator[str]:
        """The answer to one question about any number of pictures, whole or, with `stream`, piece by piece.

        prompt: may hold one `<image>` per picture; with none, the pictures go in front
        exif: turn pictures upright
        session: answer in this one; where it keeps its prefix, a further question about the same pictures costs only
          its own tokens. None: in a new one
        max_new_tokens is clipped to the room that the prompt leaves in the engine, which a UserWarning says when it was
        asked for; what `start` returns holds the number.
        Raises UsageError, PictureError and LimitError.
        """
        config = _merged(config, options)
        answer = self.start(prompt, images, exif=exif, session=session, config=config)
        self._warn_if_clipped(config, answer.max_new_tokens, stacklevel=3)
        return iter(answer) if stream else "".join(answer)

    def start(
        self,
        prompt: str,
        images: Sequence[Picture] = (),
        *,
        exif: bool = False,
        session: Session | None = None,
        config: GenerationConfig | None = None,
        **options: Any,
    ) -> Generation:
        """`generate` for those who ask more than the text: pictures and prompt are run, the text comes by iterating.

        Never warns: `max_new_tokens` of the result is what it was clipped to.
        """
        config = _merged(config, options)
        answerer, session = self._text, self._own(session)
        pictures = load_pictures(images, exif)
        ids = answerer.turn_ids(prompt, answerer.crops(pictures))
        answerer.new_tokens(session, ids, config)  # what has no room is refused before pictures are encoded
        embeds, timings_ms = answerer.encode(session, pictures)
        return answerer.answer(session, Prompt(ids, embeds), config, timings_ms)

    def _own(self, session: Session | None) -> Session:
        """`session`, or a new one for None; UsageError for one of another engine."""
        if session is None:
            return self.new_session()
        if not isinstance(session, Session) or not session.belongs_to(self.config):
            raise UsageError("session is none of this engine; make it with this model's new_session()")
        return session

    @property
    def _text(self) -> Answerer:
        if self._answerer is None:
            raise UsageError("the engine has no tokenizer; use generate_ids, or export without --no-tokenizer")
        return self._answerer

    def _complete(
        self,
        input_ids: NDArray[np.int64],
        image_embeds: NDArray[np.float32] | None,
        attention_mask: NDArray[np.int64] | None,
        eos_token_id: int | Sequence[int] | None,
        session: Session | None,
        config: GenerationConfig,
    ) -> Completion:
        if config.stop:
            raise UsageError(
                "stop texts end an answer that is text, and this one is ids; use generate, or eos_token_id"
            )
        session = self._own(session)
        config = config.seeded()
        eos = self.config.eos_token_ids if eos_token_id is None else _token_ids(eos_token_id, self.config)
        prompts = session.prompts(input_ids, attention_mask)
        session.require_rows(len(prompts), config.num_beams)
        new_tokens = config.new_tokens(self.default_new_tokens, session.room_behind(prompts))
        self._warn_if_clipped(config, new_tokens, stacklevel=4)
        logits, rows, _ = session.begin(input_ids, image_embeds, attention_mask)
        pad, said = self.config.pad_token_id, said_before(self.config, prompts)
        if config.num_beams == 1:
            steps = choose_ids(rows, logits, config, max_new_tokens=new_tokens, held_off_ids=eos, said=said)
            return collect(steps, len(logits), eos, pad)
        return beam_search(
            rows,
            logits,
            config,
            max_new_tokens=new_tokens,
            eos_token_ids=eos,
            held_off_ids=eos,
            pad_token_id=pad,
            prompts=said,
        )

    def _warn_if_clipped(self, config: GenerationConfig, new_tokens: int, stacklevel: int) -> None:
        """stacklevel: that of the public method's caller, seen from here."""
        if config.max_new_tokens is not None and new_tokens < config.max_new_tokens:
            warnings.warn(
                f"max_new_tokens is clipped from {config.max_new_tokens} to {new_tokens}: the engine holds "
                f"{self.manifest.limits.max_seq} tokens, prompt included",
                stacklevel=stacklevel,
            )


def _merged(config: GenerationConfig | None, options: dict[str, Any]) -> GenerationConfig:
    if not isinstance(config, GenerationConfig | None):
        raise UsageError(f"config is a {type(config).__name__}, expected a GenerationConfig")
    return (config or GenerationConfig()).replaced(**options)


def _token_ids(eos_token_id: Any, config: ModelConfig) -> tuple[int, ...]:
    try:
        ids = tuple(eos_token_id)
    except TypeError:
        ids = (eos_token_id,)
    vocabulary = config.decoder.vocab_size
    if any(isinstance(i, bool) or not isinstance(i, (int, np.integer)) for i in ids) or not len(ids) < vocabulary:
        found = one_line(reprlib.repr(eos_token_id))
        raise UsageError(f"eos_token_id is {found}, expected a token id or a list of fewer than {vocabulary}")
    return ids


def _require_count(name: str, value: object) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} is {value!r}, expected a whole number, 1 or more")
