"""The task of `data.fairytaleqa` on the sections of the story that a question is about."""

from __future__ import annotations

import dataclasses

from gistjax.data import fairytaleqa

TASK = dataclasses.replace(fairytaleqa.TASK, read=fairytaleqa.read_sections)
