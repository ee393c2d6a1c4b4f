"""OpenAI's chat completions: what of a request is honoured, and the reply.

The only message, the user's, is the question, and it is asked of the whole store. What would change
the answer, and is not done here, is refused by its name.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from gistjax.inference.store import Told
from gistjax.serving.replies import Refused, shown

GREEDY = "answers are greedy"
WHOLE = "an answer is written as a whole"
NO_TOOLS = "answers are text from the store's documents alone"
ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "temperature": ((0,), GREEDY),
    "top_p": ((1,), GREEDY),
    "n": ((1,), "there is one answer"),
    "stop": (([],), WHOLE),
    "logprobs": ((False,), "of probabilities only the answer's is told, in `gistjax`"),
    "presence_penalty": ((0,), GREEDY),
    "frequency_penalty": ((0,), GREEDY),
    "tools": (([],), NO_TOOLS),
    "tool_choice": (("none",), NO_TOOLS),
    "response_format": (({"type": "text"},), NO_TOOLS),
}
"""Of each parameter the values that change nothing, beside none, and why there are no others."""
LENGTHS = ("max_tokens", "max_completion_tokens")
STREAMS = ("stream", "stream_options")
WITHOUT_EFFECT = {"model", "messages", "seed", "user", *LENGTHS, *STREAMS}
"""Parameters that are looked at elsewhere, or that a greedy answer does not depend on."""


def question_of(body: Mapping[str, Any], model: str, most_tokens: int) -> str:
    """Return the question of a request.

    Args:
        model: the only one that there is.
        most_tokens: of an answer.

    Raises:
        Refused: naming the parameter that is not honoured.
    """
    if body.get("model") != model:
        code = "model_not_found"
        raise Refused(f"model must be {model!r}, the only one here.", "model", code)
    for name, value in body.items():
        if value is None or name in WITHOUT_EFFECT:
            continue
        if name not in ONLY:
            raise Refused(f"{shown(name)} is not known here: leave it out.", shown(name))
        allowed, why = ONLY[name]
        if value not in allowed:
            raise Refused(
                f"{name}={value!r:.60} is not honoured: {why}. Leave it out, or give "
                f"{allowed[0]!r}.",
                name,
            )
    for name in LENGTHS:
        value = body.get(name)
        if value is not None and not (isinstance(value, int) and value >= most_tokens):
            raise Refused(
                f"{name}={value!r:.60} is not honoured: an answer has up to {most_tokens} tokens. "
                "Leave it out, or give more.",
                name,
            )
    _check_stream(*map(body.get, STREAMS))
    return _text_of(body.get("messages"))


def _check_stream(stream: object, options: object) -> None:
    """Refuse what is no way to send a reply.

    Raises:
        Refused: saying what is.
    """
    if not (stream is None or isinstance(stream, bool)):
        raise Refused(f"stream={stream!r:.60} must be true or false.", "stream")
    if options is None:
        return
    if not stream:
        raise Refused("stream_options is for stream=true: leave it out.", "stream_options")
    about = options if isinstance(options, dict) else {"stream_options": options}
    for name, value in about.items():
        if name != "include_usage" or not isinstance(value, bool):
            raise Refused(
                f"stream_options: {shown(name)}={value!r:.60} is not honoured: of them there is "
                "only include_usage, true or false.",
                "stream_options",
            )


def tells_usage(body: Mapping[str, Any]) -> bool:
    """Return whether the last chunk of a stream tells the usage."""
    return bool((body.get("stream_options") or {}).get("include_usage"))


def _text_of(messages: object) -> str:
    """Return the text of the only message.

    Raises:
        Refused: saying what else there is.
    """
    turns = messages if isinstance(messages, list) else []
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in turns]
    if roles != ["user"]:
        raise Refused(
            f"messages must be one message, of the role 'user', and not {len(roles)} of "
            f"{roles!r:.60}: a question is answered without earlier turns and instructions.",
            "messages",
        )
    content = turns[0].get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [
        part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        for part in parts
    ]
    if not all(isinstance(text, str) for text in texts):
        raise Refused("messages[0].content must be text, and nothing else.", "messages")
    return "\n".join(map(str, texts))


def completion(told: Told, model: str, question_tokens: int, most_tokens: int) -> dict[str, Any]:
    """Return the reply.

    Args:
        question_tokens: of the question with its template, as the model reads it. What is kept of
            documents is no token, and is told in `gistjax`.
        most_tokens: of an answer; one of so many is said to end for its length.
    """
    answer = told.answer
    ended = "length" if answer.tokens >= most_tokens else "stop"
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": ended, "logprobs": None}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": question_tokens,
            "completion_tokens": answer.tokens,
            "total_tokens": question_tokens + answer.tokens,
        },
        "gistjax": told.to_json(),
    }


def chunks(whole: dict[str, Any], usage: bool) -> list[dict[str, Any]]:
    """Return a reply in parts: the answer, why it ends, and the usage.

    Args:
        whole: as `completion` returns it.
        usage: whether to tell it.
    """
    about = {key: whole[key] for key in ("id", "created", "model")}
    about |= {"object": "chat.completion.chunk"} | ({"usage": None} if usage else {})
    (choice,) = whole["choices"]
    says = {"index": 0, "delta": choice["message"], "finish_reason": None, "logprobs": None}
    ends = {**says, "delta": {}, "finish_reason": choice["finish_reason"]}
    parts = [about | {"choices": [says], "gistjax": whole["gistjax"]}, about | {"choices": [ends]}]
    return parts + usage * [about | {"choices": [], "usage": whole["usage"]}]


def models(model: str, created: int) -> dict[str, Any]:
    """Return the list of models, which has one.

    Args:
        created: Unix time in seconds.
    """
    about = {"id": model, "object": "model", "created": created, "owned_by": "gistjax"}
    return {"object": "list", "data": [about]}
