"""What lora-prep's own code must not contain: calls that run what they read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_prep

SOURCES = sorted(Path(lora_prep.__file__).parent.rglob("*.py"))
PICKLES = {"executors/ray.py", "executors/processes.py"}
"""They carry lora-prep's own objects between its own processes, never a file's content."""
FORBIDDEN = {
    "eval", "exec", "os.system", "os.popen", "torch.hub.load", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "marshal.loads", "shelve.open", "joblib.load", "dill.loads",
    "pickle.load", "pickle.loads", "pickle.Unpickler",
}  # fmt: skip


def unsafe_calls(source: str) -> Iterator[str]:
    """Names of calls that can run what they read."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if (
            name in FORBIDDEN
            or (name == "torch.load" and given.get("weights_only") != "True")
            or (name.endswith(".extractall") and given.get("filter") != "'data'")
            or (name in ("np.load", "numpy.load") and given.get("allow_pickle") == "True")
            or given.get("shell") == "True"
            or given.get("trust_remote_code") == "True"
        ):
            yield name


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, Loader=yaml.Loader)",
        "archive.extractall(folder)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "eval(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_each_is_noticed(source: str) -> None:
    assert list(unsafe_calls(source))


def test_safe_ones_are_not() -> None:
    source = "torch.load(p, weights_only=True); yaml.safe_load(t); model.eval(); re.compile(x)"
    assert not list(unsafe_calls(source))


def test_no_source_has_one() -> None:
    found = {
        f"{path.name}: {call}"
        for path in SOURCES
        for call in unsafe_calls(path.read_text("utf-8"))
        if not (call == "pickle.loads" and any(str(path).endswith(own) for own in PICKLES))
    }
    assert len(SOURCES) > 100
    assert not found
