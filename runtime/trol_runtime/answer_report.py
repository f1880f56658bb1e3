"""How an answer went: its record in JSON output, and a line of its times."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trol_runtime.memory_need import readable

if TYPE_CHECKING:
    from trol_runtime.engine import TroL
    from trol_runtime.generation import Generation
    from trol_runtime.session import Session

TIMED = ("load", "vision", "prefill", "decode")


def answer_record(answer: Generation, load_ms: float) -> dict[str, object]:
    """The JSON object of an answer that is complete, with its seed where tokens were drawn.

    load_ms: what the engine took to load, before its first answer
    """
    timings_ms = {**answer.timings_ms, "load": load_ms}
    seed = {"seed": answer.config.seed} if answer.config.do_sample else {}
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "image_tokens": answer.image_tokens,
        "new_tokens": len(answer.token_ids),
        **seed,
        "timings_ms": {name: round(timings_ms.get(name, 0.0), 3) for name in TIMED},
    }


def summary(answer: Generation, model: TroL) -> str:
    """One line on where the time went, as far as the answer has come, on its seed and on what it was limited to.

    Reused tokens were still in the session and cost nothing.
    """
    timings_ms, config = answer.timings_ms, answer.config
    parts = [f"vision {_time(timings_ms['vision'])}"] if "vision" in timings_ms else []
    parts.append(
        f"prompt {answer.prompt_tokens} tokens ({answer.image_tokens} of pictures, {answer.reused_tokens} reused) "
        f"in {_time(timings_ms['prefill'])}"
    )
    parts.append(_decoding(answer))
    if config.do_sample:
        parts.append(f"seed {config.seed}")
    line = ", ".join(parts)
    if answer.max_new_tokens < (config.max_new_tokens or model.default_new_tokens):
        held = model.manifest.limits.max_seq
        line += f"; the answer is limited to {answer.max_new_tokens} tokens: the engine holds {held}"
    return line


def kept_memory(session: Session) -> str:
    """What keeping the prefix costs, and how to do without."""
    if not session.prefix_bytes:
        return "no prefix is kept any more"
    return f"the kept prefix takes {readable(session.prefix_bytes)} of memory; --no-keep-prefix does without"


def _decoding(answer: Generation) -> str:
    """How many tokens came and what each took, or all of them where they were searched for together."""
    new_tokens = len(answer.token_ids)
    tokens = f"answer {new_tokens} token{'' if new_tokens == 1 else 's'}"
    if answer.config.num_beams > 1 and new_tokens:
        return f"{tokens} in {_time(answer.timings_ms['decode'])}"
    if new_tokens > 1:  # the first comes with the prompt; what decoding takes are the steps behind it
        return f"{tokens}, {_time(answer.timings_ms['decode'] / (new_tokens - 1))} each after the first"
    return tokens


def _time(ms: float) -> str:
    return f"{ms / 1e3:.2f} s" if ms >= 1e3 else f"{ms:.3g} ms"
