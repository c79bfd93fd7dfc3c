"""Where the models with learned weights are, and what makes commands use them.

The weights come from `tools/tiny_models`; they know painted portraits and nothing else.
"""

from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"
PACK = ASSETS / "tiny_faces"
SAM2 = ASSETS / "tiny_sam2" / "tiny_sam2.pt"
SAM2_CONFIG = SAM2.with_suffix(".yaml")

DET_SIZE = 384

DETECTING = tuple(
    map(
        str,
        (
            *("--detector", "insightface", "--face-model", PACK),
            *("--det-size", DET_SIZE, "--device", "cpu"),
        ),
    )
)
MASKING = (
    *DETECTING,
    *("--segmenter", "sam2", "--sam2-model", str(SAM2), "--sam2-config", str(SAM2_CONFIG)),
)
