"""The former name of `experiments.listops`, for the commands that results record."""

from experiments.listops import Config, main
from experiments.shared import common

__all__ = ["Config", "main"]

if __name__ == "__main__":
    common.run_cli(main, Config)
