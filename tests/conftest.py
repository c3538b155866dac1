"""One thread for every test: the models are tiny, and threads that wait for each other take longer than they help."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in the processes tests start
