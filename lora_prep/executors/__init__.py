"""Where stages run. Each executor takes the same stages, unchanged."""

from lora_prep.run import Executor


def choose(
    name: str,
    *,
    threads: int = 4,
    workers: int | None = None,
    num_gpus: float = 0.0,
    address: str | None = None,
) -> Executor:
    """The executor of a name: `local`, `processes` or `ray`.

    `workers` and `num_gpus` are for the latter two, `address` for Ray. Raises ValueError for
    another name.
    """
    match name:
        case "local":
            from lora_prep.executors.local import LocalExecutor

            return LocalExecutor(threads)
        case "processes":
            from lora_prep.executors.processes import ProcessesExecutor

            return ProcessesExecutor(workers, threads, num_gpus)
        case "ray":
            from lora_prep.executors.ray import RayExecutor

            return RayExecutor(address, workers, threads, num_gpus)
    raise ValueError(f"there is no executor {name!r}")
