"""What a user might do with an engine, as arrays: every role, and everything that happens to a cache."""

from __future__ import annotations

import numpy as np

from small_prompts import picture
from trol_runtime import TroL

PICTURE = picture(40, 40)


def conversation(model: TroL) -> list[np.ndarray]:
    """A picture, decoding, another prompt, beams that change places, two sessions in turns, one that goes on behind its
    prefix, and its fork: embeddings and logits."""
    embeds = model.session.encode(model.preprocess([PICTURE]))
    tokens = embeds.shape[1]
    ids = np.array([[1, *[model.config.image_token_id] * tokens, 5, 6, 7]])
    found = [embeds, model.session.prefill(ids, embeds)]
    found += [model.session.decode(np.array([token])) for token in (8, 9, 10)]
    found.append(model.session.prefill(np.array([[1, 44, 3, 9]])))
    model.session.repeat(3)
    found.append(model.session.decode(np.array([5, 6, 7])))
    found.append(model.session.decode(np.array([15, 16, 17])))
    model.session.reorder(np.array([2, 0, 1]))
    found.append(model.session.decode(np.array([25, 26, 27])))
    other = model.new_session()
    found.append(other.prefill(np.array([[1, 80, 3]])))
    turns = [(model.session, 3), (other, 1)] * 2
    found += [session.decode(np.full(rows, 7)) for session, rows in turns]
    chat = model.new_session(keep_prefix=True)
    found += [chat.prefill(np.array([[1, 5, 9]])), chat.decode(np.array([4])), chat.extend(np.array([[3, 8]]))]
    fork = chat.fork()
    found += [chat.decode(np.array([7])), fork.decode(np.array([11])), chat.decode(np.array([12]))]
    return found
