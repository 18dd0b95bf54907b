"""pyproject.toml, Makefile, README and the other files at the top say the same things."""

import re
import tomllib

import pytest
import yaml

import ssmjax
from tests.repo.sources import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=;# ]", requirement)[0].lower() for requirement in requirements}


def test_core_dependencies_are_few():
    assert names(PROJECT["dependencies"]) == {
        "einops", "flax", "huggingface_hub", "jax", "jaxtyping", "numpy", "optax", "orbax-checkpoint", "safetensors",
        "tqdm", "tyro",
    }  # fmt: skip


def test_only_lower_bounds():
    extras = PROJECT["optional-dependencies"]
    requirements = PROJECT["dependencies"] + [r for name, group in extras.items() if name != "parity" for r in group]
    assert [r for r in requirements if re.search(r"[<!~]|==", r)] == []


def test_the_lower_ends_are_those_of_a_stock_colab():
    assert {"jax>=0.7.2", "flax>=0.11.2"} <= set(PROJECT["dependencies"])
    assert "jax==0.7.2 jaxlib==0.7.2 flax==0.11.2" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = re.search(r"^## \[?([\d.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert citation["version"] == ssmjax.__version__ == changelog.group(1)


def test_readme_names_targets_and_files_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"make ([a-z][a-z-]+)", README)) <= targets
    modules = set(re.findall(r"python -m ((?:experiments|tests|benchmarks)[\w.]*)", README))
    paths = {ROOT / module.replace(".", "/") for module in modules}
    assert [path for path in paths if not path.with_suffix(".py").is_file() and not path.is_dir()] == []
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_first_example_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?create_model.*?)```", README, re.DOTALL).group(1)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["logits"].shape == (8, 10)
    assert (tmp_path / "my_vim" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("page", ["README", "index", "deploy", "own_training_loop", "state_space_layers"])
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page}
    text = README if page == "README" else (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(example, page, "exec"), names)


def test_the_page_of_the_layers_names_models_that_exist():
    text = (ROOT / "docs" / "state_space_layers.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+_(?:classifier|regressor))`", text))
    for stem, sizes in re.findall(r"^\| `(\w+_classifier_)` and (.*?) \|", text, re.MULTILINE):
        named |= {f"{stem}{size}" for size in re.findall(r"`(\w+)`", sizes)}
    known = {*ssmjax.list_models("*_classifier*"), *ssmjax.list_models("*_regressor*")}
    assert named == {name for name in known if not name.endswith("_nano")}
