"""What of OpenAI's chat is honoured, and what is refused by name."""

import pytest

from gistjax.serving.chat import question_of
from gistjax.serving.replies import Refused

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Who built it?"}]}


def user(content):
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"temperature": 0, "top_p": 1.0, "n": 1, "stream": False, "seed": 7, "user": "someone"},
        {"logprobs": False, "stop": [], "tools": [], "tool_choice": "none", "max_tokens": 6},
        {"temperature": None, "stop": None, "response_format": {"type": "text"}},
        {"max_completion_tokens": 4096, "frequency_penalty": 0, "presence_penalty": 0.0},
        {"messages": user([{"type": "text", "text": "Who built it?"}])},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stream": None, "stream_options": None},
    ],
)
def test_what_changes_nothing_may_be_given(more):
    assert question_of(BODY | more, "tiny", 6) == "Who built it?"


@pytest.mark.parametrize(
    ("more", "parameter", "message"),
    [
        ({"model": "gpt"}, "model", "model must be 'tiny'"),
        ({"temperature": 0.7}, "temperature", "temperature=0.7 is not honoured: answers are gree"),
        ({"temperature": float("nan")}, "temperature", "temperature=nan"),
        ({"top_p": 0.9}, "top_p", "greedy"),
        ({"n": 2}, "n", "there is one answer. Leave it out, or give 1"),
        ({"stream": "yes"}, "stream", "stream='yes' must be true or false"),
        ({"stream": 1}, "stream", "must be true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "is for stream=true"),
        ({"stream": True, "stream_options": True}, "stream_options", "stream_options=True is not"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": False}},
            "stream_options",
            "include_obfuscation=False is not honoured: of them there is only include_usage",
        ),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options", "usage=1 is"),
        ({"stop": ["."]}, "stop", "written as a whole"),
        ({"logprobs": True}, "logprobs", "only the answer's is told"),
        ({"top_logprobs": 3}, "top_logprobs", "top_logprobs is not known here"),
        ({"tools": [{"type": "function"}]}, "tools", "text from the store's documents alone"),
        ({"tool_choice": "auto"}, "tool_choice", "text from the store's documents alone"),
        ({"response_format": {"type": "json_object"}}, "response_format", "give {'type': 'text'}"),
        ({"max_tokens": 5}, "max_tokens", "an answer has up to 6 tokens"),
        ({"max_completion_tokens": "many"}, "max_completion_tokens", "up to 6 tokens"),
        ({"audio": {}}, "audio", "audio is not known here"),
        ({"messages": None}, "messages", "not 0 of"),
        ({"messages": [{"role": "system", "content": "Be kind."}]}, "messages", "'system'"),
        ({"messages": user("Who?") * 2}, "messages", "not 2 of"),
        ({"messages": ["Who?"]}, "messages", "not 1 of"),
        ({"messages": user([{"type": "image_url"}])}, "messages", "must be text, and nothing"),
        ({"messages": user(None)}, "messages", "must be text, and nothing"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(more, parameter, message):
    with pytest.raises(Refused) as refused:
        question_of(BODY | more, "tiny", 6)
    assert refused.value.parameter == parameter and message in str(refused.value)
