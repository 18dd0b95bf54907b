"""The former name of `experiments.spoken_digits`, for the commands that results record."""

from experiments.shared import common
from experiments.spoken_digits import Config, main

__all__ = ["Config", "main"]

if __name__ == "__main__":
    common.run_cli(main, Config)
