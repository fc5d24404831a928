"""Notebooks that are run as tests keep their runs apart from those of the reader."""

import os
import tempfile

os.environ["KIMI_RUNS"] = tempfile.mkdtemp(prefix="kimi-runs-")
