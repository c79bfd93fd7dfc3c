"""What a package says of itself once it is imported: `doctor` runs this in a process of its own.

An import may fail, crash the process, hang or print; so each result is written as a line of JSON
as soon as it is known, and whoever reads them sees which one is missing.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

Facts: TypeAlias = dict[str, Any]


def main(names: Sequence[str]) -> None:
    """Probe the named packages in order: {"name": ..., "facts": {...}} or {"error": ...} a line."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # imports may print
    for name in names:
        try:
            answer: Facts = {"facts": PROBES[name]()}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"name": name, **answer}), file=results, flush=True)


def numpy() -> Facts:
    """Its version."""
    import numpy

    return {"version": numpy.__version__}


def pillow() -> Facts:
    """Its version, and which formats it was built for."""
    import PIL
    from PIL import Image, features  # noqa: F401, the extension module is in Image

    names = {"avif": "AVIF", "webp": "WebP", "littlecms2": "LCMS", "jpg_2000": "JPEG 2000"}
    return {
        "version": PIL.__version__,
        "features": {said: bool(features.check(name)) for name, said in names.items()},
    }


def opencv() -> Facts:
    """Its version."""
    import cv2

    return {"version": cv2.__version__}


def onnxruntime() -> Facts:
    """Its version, and the providers in this build."""
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    return {"version": onnxruntime.__version__, "providers": providers}


def onnx_session() -> Facts:
    """The providers that start where CUDA is asked for: ONNX Runtime falls back to the CPU.

    To be asked after torch was imported, as insightface does, since that loads CUDA's libraries.
    """
    import onnxruntime
    from onnx import TensorProto, helper

    from lora_prep.backends import device

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=device.onnx_providers("auto")
    )
    return {"active": session.get_providers()}


def insightface() -> Facts:
    """Its version."""
    import insightface
    import insightface.app

    return {"version": insightface.__version__}


def torch() -> Facts:
    """Its version, the CUDA it is built for, its devices, and what it says where there is none."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    devices = []
    for index in range(torch.cuda.device_count() if usable else 0):
        found = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        devices.append({"name": found.name, "memory": found.total_memory, "bf16": bf16})
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "devices": devices,
        "said": [str(warning.message) for warning in said],
    }


def torchvision() -> Facts:
    """Its version and the CUDA it is built for; importing it registers torchvision::nms."""
    import torchvision

    build = getattr(torchvision.version, "cuda", None)
    cuda = f"{build // 1000}.{build % 1000 // 10}" if build else None
    return {"version": torchvision.__version__, "cuda": cuda}


def sam2() -> Facts:
    """Nothing but that it can be imported: it does not tell its version."""
    import sam2.build_sam
    import sam2.sam2_image_predictor  # noqa: F401

    return {}


def models() -> Facts:
    """Models that are here, packs whose download broke off, where models are kept, the licence."""
    from huggingface_hub import constants

    from lora_prep.backends import catalogue, licenses, weights

    here = [name for name, model in catalogue.MODELS.items() if catalogue.locate(model)]
    folders = {name: weights.pack_folder(name) for name in weights.PACKS}
    return {
        "here": here,
        "damaged": [str(f) for name, f in folders.items() if f.is_dir() and name not in here],
        "packs_folder": str(weights.pack_folder(weights.DEFAULT_PACK).parent),
        "hub_folder": str(constants.HF_HUB_CACHE),
        "offline": bool(constants.HF_HUB_OFFLINE),
        "license": licenses.accepted(),
    }


def embedded() -> Facts:
    """Run the embedded preset's models: pixels of a mask for a face that is said to be there."""
    import numpy as np

    from lora_prep import backends
    from lora_prep.backends import DetectorSpec, SegmenterSpec
    from lora_prep.types import Face, Region

    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    image[24:72, 24:72] = 200
    backends.detector(DetectorSpec("cascade")).detect(image)
    segmenter = backends.segmenter(SegmenterSpec("grabcut"))
    face = Face((24.0, 24.0, 72.0, 72.0), 1.0)
    prepared = segmenter.prepare(image)
    (answer,) = segmenter.segment([prepared], [[face]], Region.FACE)
    (mask,) = segmenter.finish(prepared, answer)
    return {"mask": int(mask.sum())}


PROBES: dict[str, Callable[[], Facts]] = {
    "numpy": numpy,
    "pillow": pillow,
    "opencv": opencv,
    "onnxruntime": onnxruntime,
    "torch": torch,
    "torchvision": torchvision,
    "sam2": sam2,
    "insightface": insightface,
    "onnx_session": onnx_session,
    "models": models,
    "embedded": embedded,
}

if __name__ == "__main__":
    main(sys.argv[1:])
