"""The former name of `experiments.sequential_mnist`, for the commands that results record."""

from experiments.sequential_mnist import Config, main
from experiments.shared import common

__all__ = ["Config", "main"]

if __name__ == "__main__":
    common.run_cli(main, Config)
