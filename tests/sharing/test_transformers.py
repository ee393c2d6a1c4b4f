"""What is kept of a text, asked in PyTorch by transformers and PEFT: the same answers, as probable.

Only the reader, a file that stands alone, is between; it is taken from where `export` wrote it.
"""

import dataclasses
import importlib.util
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import transformers
from absl import flags
from safetensors.numpy import load_file, save_file

import gistjax
from gistjax import export
from gistjax.config import ModelConfig, SelectConfig
from gistjax.data.prompts import make_prompt
from gistjax.errors import ConfigError, ExportError, WeightsError
from gistjax.experiment.run_dir import RunDir
from gistjax.inference.transformers_file import prompt_of
from gistjax.runtime import cli
from gistjax.runtime.tensors import load_tensors, save_tensors
from gistjax.sharing.prompt_embeds import prompt_embeds
from gistjax.weights.tokenizers import BYTE_TEMPLATE
from tests.helpers.asked import answer_ids
from tests.helpers.folders import write_base
from tests.helpers.lazy import torch
from tests.helpers.runs import ASKED, SELECTED, write_run
from tests.helpers.small_tokenizers import KINDS, TEMPLATES, small_tokenizer

pytestmark = pytest.mark.slow

TEXTS = [
    "Ada wrote the first program. She lived in London.",
    "The mill was built in 1783 by Anneke Dursel, when her yard had burnt down two winters before.",
]
QUESTIONS = ["Who wrote it?", "When was the mill of Anneke Dursel built, and why?"]
FORMS = {
    "kept": SELECTED.replace(select=SelectConfig("knorm", "all")),
    "packed": ASKED.replace(slot_positions="packed"),
    "key_values": ASKED.replace(slot_form="key_values"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny base in a folder, whose attention is sharp enough to tell one text from another."""
    folder = write_base(tmp_path_factory.mktemp("base") / "base")
    (folder / "chat_template.jinja").write_text(BYTE_TEMPLATE)
    tensors = load_file(folder / "model.safetensors")
    loud = {name: x * (1 if "norm" in name else 8) for name, x in tensors.items()}
    save_file(loud, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def exported(base, tmp_path_factory):
    """Makes a run of a form, no factor of whose adapter is zero, and what `export` writes of it."""

    def make(form):
        home = tmp_path_factory.mktemp(form)
        model = ModelConfig(path=str(base), dtype="float32")
        run = write_run(home / "run", FORMS[form].replace(model=model))
        arrays, metadata = load_tensors(run / "compressor.safetensors")
        rng = np.random.default_rng(0)
        drawn = {k: x + 0.1 * rng.normal(size=x.shape).astype(x.dtype) for k, x in arrays.items()}
        save_tensors(run / "compressor.safetensors", drawn, metadata)
        (home / "text.txt").write_text(TEXTS[1])
        run_export(run, "--to=transformers", f"--output={home}/out", f"--context={home}/text.txt")
        return SimpleNamespace(run=run, out=home / "out", engine=gistjax.load(run))

    return make


def run_export(run, *words):
    values = flags.FlagValues()
    export.define_flags(values)
    config, rest = cli._parse(
        ["export", f"--run={run}", *words], lambda argv: RunDir(run).config(), values
    )
    export.main(config, values, rest)


class Theirs:
    """The base in PyTorch with a run's adapter."""

    def __init__(self, base, folder):
        from peft import PeftModel

        spec = importlib.util.spec_from_file_location("reader", folder / "transformers_reader.py")
        self.reader = sys.modules["reader"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.reader)
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        self.model = PeftModel.from_pretrained(model, folder).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(base)

    def read(self, file):
        return self.reader.KeptText.read(file, self.model)

    def answers(self, file, questions):
        """Ids up to an end, and the log-probability of all that was generated, of each."""
        inputs = self.read(file).inputs(self.tokenizer, questions)
        return self.generated(inputs, inputs["input_ids"].shape[1])

    def generated(self, inputs, before):
        with torch.no_grad():
            found = self.model.generate(**inputs, output_logits=True, return_dict_in_generate=True)
        told = torch.stack(found.logits, 1).log_softmax(-1)
        answers = []
        for ids, told_AxV in zip(found.sequences[:, before:].tolist(), told, strict=True):
            ends = [i for i, token in enumerate(ids) if token in inputs["eos_token_id"]]
            own = ids[: ends[0] + 1] if ends else ids
            total = sum(told_AxV[i, token].item() for i, token in enumerate(own))
            answers.append((own[: ends[0]] if ends else own, total))
        return answers


def assert_same(document, theirs):
    for question, (ids, total) in zip(QUESTIONS, theirs, strict=True):
        ours = answer_ids(document, question)
        assert ours.ids == ids
        assert ours.log_probability == pytest.approx(total, abs=2e-4)


@pytest.mark.parametrize("form", FORMS)
def test_transformers_answers_from_what_is_kept_as_we_do(form, base, exported, tmp_path):
    """Of several texts as one and in few bits too; one question at a time and several together."""
    run = exported(form)
    assert {path.name for path in run.out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "document.safetensors",
        "transformers_reader.py",
    }
    theirs = Theirs(base, run.out)
    compress = run.engine.compress
    document = compress(TEXTS[1])
    found = theirs.answers(run.out / "document.safetensors", QUESTIONS)
    assert_same(document, found)
    singly = [theirs.answers(run.out / "document.safetensors", one)[0] for one in QUESTIONS]
    assert [ids for ids, _ in singly] == [ids for ids, _ in found]
    others = [run.engine.join([compress(text) for text in TEXTS]), compress(TEXTS[1], bits=4)]
    for other in others:
        size = other.to_transformers(tmp_path / "other")
        assert size == (tmp_path / "other").stat().st_size
        again = theirs.answers(tmp_path / "other", QUESTIONS)
        assert_same(other, again)
        assert all(abs(one - two) > 1e-3 for (_, one), (_, two) in zip(found, again, strict=True))


def test_a_cache_is_not_changed_by_an_answer_and_tells_positions_not_entries(
    base, exported, tmp_path
):
    run = exported("kept")
    text = Theirs(base, run.out).read(run.out / "document.safetensors")
    prompt = run.engine.pretrained.prompt
    taken = len(prompt.prefix_ids) + len(prompt.encode_context(TEXTS[1]))
    cache = text.cache(2)
    keys, _ = text.layers[0]
    assert cache.get_seq_length() == taken > keys.shape[2] and keys.shape[0] == 1
    counts = load_file(run.out / "document.safetensors")["count"]
    assert len(set(counts.ravel().tolist())) > 1, "KV heads keep different numbers"
    for (k, _), count_K in zip(text.layers, counts, strict=True):
        assert (~k[0, :, :, 0].isnan()).sum(1).tolist() == count_K.tolist()
    new = torch.zeros(2, keys.shape[1], 3, keys.shape[3])
    cache.layers[0].update(new, new)
    assert cache.get_seq_length() == taken + 3
    cache.crop(-3)
    assert cache.get_seq_length() == taken == text.cache().get_seq_length()


def test_embeddings_of_slots_are_answered_from_by_peft_alone(base, exported):
    run = exported("packed")
    theirs, document = Theirs(base, run.out), run.engine.compress(TEXTS[1])
    ends = list(run.engine.pretrained.prompt.end_ids)
    answers = []
    for question in QUESTIONS:
        embeds = torch.tensor(prompt_embeds(document, question))[None]
        inputs = {
            "inputs_embeds": embeds,
            "attention_mask": torch.ones(embeds.shape[:2], dtype=torch.long),
            "max_new_tokens": 6,
            "eos_token_id": ends,
            "pad_token_id": ends[0],
            "do_sample": False,
        }
        answers += theirs.generated(inputs, 0)
    assert_same(document, answers)


def test_what_was_not_written_for_transformers_is_refused(base, exported, tmp_path):
    run = exported("kept")
    run.engine.compress(TEXTS[0]).save(tmp_path / "document")
    read = Theirs(base, run.out).read
    with pytest.raises(ValueError, match="was not written by gistjax for transformers"):
        read(tmp_path / "document")
    with pytest.raises(ConfigError, match="--to transformers needs --context FILE"):
        run_export(run.run, "--to=transformers", f"--output={tmp_path}/out")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_question_has_our_tokens_in_transformers(kind, template):
    """Also where the tokenizer puts a space before a text that stands alone."""
    from gistjax.sharing.transformers_reader import KeptText

    tokenizer = small_tokenizer(kind, TEMPLATES[template])
    try:
        prompt = make_prompt(tokenizer)
    except WeightsError:
        return  # nothing is compressed with it
    text = KeptText([], 0, json.loads(json.dumps(prompt_of(prompt, 6))))
    spelled = ["  Is 1783 <|im_end|> a year? "] * (kind != "unigram")  # has another space there
    for question in (*QUESTIONS, *spelled, "‘Tis é?"):
        ours = prompt.encode_question(question).tolist()
        assert text.question_ids(tokenizer, question) == ours


def test_a_tokenizer_that_would_give_questions_other_tokens_is_refused():
    prompt = make_prompt(small_tokenizer("byte level"))
    other = dataclasses.replace(prompt, tokenizer=small_tokenizer("words"))
    with pytest.raises(ExportError, match="gives a question other tokens where it stands alone"):
        prompt_of(other, 6)
