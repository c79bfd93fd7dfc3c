"""Which checks run."""

import pytest

from lora_prep.errors import UsageError
from lora_prep.validate import CHECKS, Level, Selection

DEFAULT = {check.code for check in CHECKS if check.level is Level.DEFAULT}
DEEP = {check.code for check in CHECKS if check.level is Level.DEEP}
DRIFT = {check.code for check in CHECKS if check.level is Level.DRIFT}
ALL = {check.code for check in CHECKS}


@pytest.mark.parametrize(
    ("selection", "codes"),
    [
        (Selection(), DEFAULT),
        (Selection(deep=True), DEFAULT | DEEP),
        (Selection(deep=True, drift=True), DEFAULT | DEEP | DRIFT),
        (Selection(select=("P001",)), {"P001"}),
        (Selection(select=("p001, m005",)), {"P001", "M005"}),
        (Selection(select=("C",)), {c for c in ALL if c[0] == "C"}),
        (Selection(select=("ALL",)), ALL),
        (Selection(select=("all",), ignore=("A", "P00")), {
            c for c in ALL if c[0] != "A" and not c.startswith("P00")
        }),
        (Selection(ignore=("M",)), {c for c in DEFAULT if c[0] != "M"}),
        (Selection(select=("M001",), deep=True), {"M001"}),
    ],
)  # fmt: skip
def test_selection(selection: Selection, codes: set[str]) -> None:
    assert selection.codes == codes


@pytest.mark.parametrize("text", ["X", "P999", "", "P001,,M", "P001;M"])
def test_what_is_no_code_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="is the beginning of no code"):
        _ = Selection(select=(text,)).codes
    with pytest.raises(UsageError, match="is the beginning of no code"):
        _ = Selection(ignore=(text,)).codes
