"""Side-by-side measurements: peers and Newleaf alternate in one run on the same work. `README.md` has the results."""
