"""Claims that one command re-runs: `python -m experiments.<name>`. Lives in the clone, not in the wheel.

Files are named by their task. Results that were recorded under a former name keep their contents: `FORMER` maps the
names, and the commands in them still run.
"""

FORMER = {
    "s4_smnist": "sequential_mnist",
    "s4_spoken_digits": "spoken_digits",
    "s5_listops": "listops",
    "s5_scifar": "sequential_cifar",
}
