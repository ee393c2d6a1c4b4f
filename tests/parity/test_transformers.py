"""The compressor in the package, its texts asked by transformers in PyTorch: the same answers.

Both in fp32, from the same weights: the base's are rounded to bf16, in which it was trained.
"""

import copy
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

import gistjax
from gistjax.experiment.base import load_pretrained, load_trained
from gistjax.experiment.run_dir import SHIPPED, RunDir
from gistjax.inference.engine import Engine
from gistjax.runtime.sharding import one_device
from gistjax.sharing.peft import export_peft
from tests.helpers.asked import answer_ids
from tests.helpers.lazy import torch

pytestmark = pytest.mark.long

NUMBER = 100

SAMPLE = Path(gistjax.__file__).parent / "data" / "sample"


@pytest.fixture(scope="module")
def engine(smollm2_path):
    config = RunDir(SHIPPED).config()
    model = replace(config.model, path=str(smollm2_path), compute_dtype="float32")
    config = config.replace(model=model)
    given = load_trained(RunDir(SHIPPED), config, load_pretrained(config, one_device()))
    return Engine(config, *given, compressor="")


@pytest.fixture(scope="module")
def adapted(torch_smollm2, tmp_path_factory):
    """The base in PyTorch with the decoder's adapter."""
    from peft import PeftModel

    base = copy.deepcopy(torch_smollm2)
    with torch.no_grad():
        for weights in base.parameters():
            weights.copy_(weights.bfloat16())
    folder = tmp_path_factory.mktemp("adapter")
    export_peft(SHIPPED, RunDir(SHIPPED).config(), folder, "base")
    return PeftModel.from_pretrained(base, folder).eval()


def questions(file):
    """All of a file, each with its paragraph."""
    articles = json.loads(file.read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    return [(one["context"], qa["question"]) for one in paragraphs for qa in one["qas"]]


def test_transformers_answers_a_hundred_questions_as_the_compressor_does(
    engine, adapted, their_tokenizer, tmp_path
):
    """Of SQuAD's validation set where it is at hand (GISTJAX_SQUAD), else of the sample."""
    from gistjax.sharing.transformers_reader import KeptText

    folder = Path(os.environ.get("GISTJAX_SQUAD", "data/squad"))
    squad = folder / "validation.json"
    found = questions(squad if squad.is_file() else SAMPLE / "train.json")
    different = []
    for context, question in sorted(random.Random(0).sample(found, NUMBER)):
        document = engine.compress(context)
        document.to_transformers(tmp_path / "document")
        text = KeptText.read(tmp_path / "document", adapted)
        inputs = text.inputs(their_tokenizer, question)
        with torch.no_grad():
            ids = adapted.generate(**inputs)[0, inputs["input_ids"].shape[1] :].tolist()
        theirs = [token for token in ids if token not in inputs["eos_token_id"]]
        ours = answer_ids(document, question).ids
        if ours != theirs:
            different.append((question, document.engine.pretrained.prompt.decode(ours), theirs))
    assert not different, f"{len(different)} of {NUMBER}"
