"""Build every known model on the meta device and write down its layers."""

import json
from pathlib import Path

from lora_prep.training.targets import inventory, meta


def main(folder: Path) -> None:
    """Write `<name>.json` for each of `meta.shipped()` into `folder`."""
    folder.mkdir(exist_ok=True)
    for name in meta.shipped():
        stored = inventory.dump(meta.from_config(meta.public_config(name), name))
        rows = ",\n".join(f"  {json.dumps(row)}" for row in stored["layers"])
        text = f'{{"parameters": {stored["parameters"]}, "layers": [\n{rows}\n]}}\n'
        (folder / f"{name}.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main(Path(__file__).parent / "layers")
