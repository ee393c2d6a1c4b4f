"""What every process of a trial needs, imported once. Nothing here starts JAX."""

import gistjax.assembly
import gistjax.cli
import gistjax.results
import gistjax.train
import gistjax.training.checkpoint
import gistjax.training.context_views
import gistjax.training.loop  # noqa: F401
