"""PyTorch, imported where a test first uses it: its five seconds would pass in every worker."""

import importlib


class Lazy:
    """A module that is imported when something of it is first asked for."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> object:
        if name.startswith(("_", "pytest")):  # pytest asks whatever a test module holds
            raise AttributeError(name)
        return getattr(importlib.import_module(self._name), name)


torch = Lazy("torch")
F = Lazy("torch.nn.functional")
