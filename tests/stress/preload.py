"""What every process of a trial needs, imported once. Nothing here starts JAX."""

import importlib

import transformers

for name in ("gistjax.train", "gistjax.runtime.cli", "orbax.checkpoint", "numpy"):
    importlib.import_module(name)  # not by statements: what they import would look unused
transformers.PreTrainedTokenizerFast.__name__  # noqa: B018 — transformers imports what is asked for
