"""One ablation: which scorer chooses, and how many entries a KV head; the rest is `gist_m64.py`.

python -m gistjax.train --config configs/ablation.py:pooling,32
"""

from dataclasses import replace
from pathlib import Path

from gistjax.errors import ConfigError
from gistjax.runtime.cli import read_config_file

SCORER_LR = {"gist": 1.6e-2, "cross_attention": 1.6e-2, "conv": 3.2e-3, "pooling": 3.2e-3}
"""Of each scorer: 20 or 4 times the adapters' rate (docs/results/selection.md).

The first two train few numbers. On little data 20 times can be too much for cross_attention
(docs/select.md).
"""


def get_config(which="gist,64"):
    scorer, _, entries = which.partition(",")
    if scorer not in SCORER_LR or not entries.isdecimal():
        raise ConfigError(
            f"{which!r} is not SCORER,ENTRIES, as in configs/ablation.py:gist,64, with one of "
            f"{', '.join(SCORER_LR)}. The seed's slots are in configs/seed/ablation.py."
        )
    config = read_config_file(str(Path(__file__).with_name("gist_m64.py")))
    return config.replace(
        target_length=int(entries),
        select=replace(config.select, scorer=scorer),
        optimizer=replace(config.optimizer, scorer_lr=SCORER_LR[scorer]),
    ).to_config_dict()
