"""Claims that one command re-runs: `python -m experiments.<name>`. Lives in the clone, not in the wheel."""
