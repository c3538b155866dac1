"""`--multirun`: every combination of several values as a run of its own, and what came of them.

`plan.py` says which runs there are, `running.py` runs them, `results.py` reads their files, `summary.py` and
`picture.py` compare them. This process loads neither torch nor Hydra's own launchers: each run is `train.py` again.
"""
