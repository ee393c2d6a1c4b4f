"""The PyTorch peer of load tests, on a tiny random model: batches change no answer."""

import argparse
import threading
import time

import numpy as np
import pytest
import uvicorn
from safetensors.numpy import load_file, save_file

from gistjax.weights.tokenizers import BYTE_TEMPLATE
from launch import load
from launch.asked_file import Question
from tests.helpers.folders import write_base

pytestmark = pytest.mark.slow

PAGES = {
    "mill": "The mill was built in 1783 by Anneke Dursel.",
    "port": "The harbour of Ostrel was dredged in 1902, and again when the mill had burnt down.",
}
QUESTIONS = [
    Question(text, page, ("Anneke Dursel",))
    for page in PAGES
    for text in ("Who built it?", "When was the mill built, and why?", "What?")
]


@pytest.fixture(scope="module")
def peer():
    """The module, whose import takes seconds."""
    from launch import torch_peer_server

    return torch_peer_server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny base whose attention is sharp enough to tell one text from another."""
    made = write_base(tmp_path_factory.mktemp("base") / "base")
    (made / "chat_template.jinja").write_text(BYTE_TEMPLATE)
    tensors = load_file(made / "model.safetensors")
    loud = {name: x * (1 if "norm" in name else 8) for name, x in tensors.items()}
    save_file(loud, made / "model.safetensors", {"format": "pt"})
    return made


@pytest.fixture(scope="module")
def model(peer, folder):
    given = {"model": folder, "adapter": None, "device": "cpu", "static": False}
    return peer.Model(argparse.Namespace(**given, answer_tokens=6))


def prompts_of(model):
    prompt = model.prompt
    return [
        np.concatenate(
            [
                prompt.prefix_ids,
                prompt.encode_context(PAGES[question.page]),
                prompt.encode_question(question.text),
            ]
        )
        for question in QUESTIONS
    ]


def test_padding_changes_no_answer_nor_does_a_static_cache(model, monkeypatch):
    prompts = prompts_of(model)
    alone = [model.answer([ids], 1)[0] for ids in prompts]
    assert len(set(map(tuple, alone))) > 2  # they can be told apart
    assert model.answer(prompts, len(prompts)) == alone
    monkeypatch.setattr(model, "static", True)
    assert model.answer(prompts[:3], 4) == alone[:3]


def test_those_of_about_the_length_of_the_oldest_are_answered_with_it(peer):
    lengths, seen, release = [5, 1, 9, 4, 8, 6], [], threading.Event()

    def answer(prompts, rows):
        release.wait(20)
        seen.append([len(ids) for ids in prompts])
        return [[len(ids)] for ids in prompts]

    batcher = peer.Batcher(answer, 3)
    asked = [batcher.ask(np.zeros(length, int)) for length in lengths]
    batcher.start()
    release.set()
    assert [one.result(20) for one in asked] == [[length] for length in lengths]
    assert seen == [[4, 5, 6], [1, 8, 9]]


def test_a_load_test_is_answered(peer, model):
    batcher = peer.Batcher(model.answer, 4)
    batcher.start()
    app = peer.make_app(batcher, model, PAGES)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        found = load.summary(load.run(load.Load(url, QUESTIONS, False, 3, 12), 1))
        assert (found["requests"], found["errors"]) == (12, {})
        assert 1 <= found["tokens_an_answer"] <= 6
        assert load.asyncio.run(load.device_of(url)) == "1 x cpu"
    finally:
        server.should_exit = True
        thread.join(20)
