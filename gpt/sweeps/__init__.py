"""`--multirun`: every combination of several values, or those that a search asks for, each as a run of its own.

`options.py` reads the sweep's own options. `plan.py` says which runs there are, or `study.py`, with optuna, in the
space of `space.py`. `running.py` runs them here, or `submitting.py` as jobs of submitit's, which do what `job.py` says.
`results.py` reads what they left, `summary.py` and `picture.py` compare it. This process does not load torch, and the
libraries of the extra `[sweep]` only when they are asked for: each run is `train.py` again. Hydra's own plugins for
both are no longer maintained, and need `@hydra.main`.
"""
