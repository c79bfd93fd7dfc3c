"""Class images through the runner: a painter in place of the model, so that its moods are ours."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from lora_prep import imageio
from lora_prep.backends.diffusers_pipeline import PipelineSpec, Request, Sampling
from lora_prep.errors import OutOfMemory
from lora_prep.executors.local import LocalExecutor
from lora_prep.priors import Seen, file_name, pixel_hash, prompts_from, seed_of
from lora_prep.run import Report, plan, run
from lora_prep.stages.priors import TRIES, AdoptPriors, DrawPriors
from lora_prep.types import Status

BLACK = np.zeros((16, 16, 3), np.uint8)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)


@dataclass
class Moody:
    """Draws noise from the seed, and in place of some seeds something else."""

    instead: dict[int, np.ndarray | str] = field(default_factory=dict)
    fits: int = 1000
    asked: list[list[Request]] = field(default_factory=list)

    def describe(self) -> str:
        return "moody"

    def draw(self, requests: Sequence[Request]) -> list[np.ndarray | str]:
        if len(requests) > self.fits:
            raise OutOfMemory("out of memory")
        self.asked.append(list(requests))
        return [self.instead.get(r.seed, noise(r.seed)) for r in requests]


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., Report]:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model_index.json").write_text("{}")

    def call(painter: Moody, *, force: bool = False, **options) -> Report:
        values = {"prompts": ("a person",), "count": 4, **options}
        stage = DrawPriors(
            tmp_path / "priors",
            tmp_path,
            PipelineSpec(model),
            Sampling(16, 16, 2),
            painter=lambda *_: painter,
            **values,
        )
        return run(stage, tmp_path, executor=LocalExecutor(2), force=force)

    return call


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_names_are_diffusers_and_nothing_else_is_in_the_folder(draw, tmp_path):
    draw(Moody())
    wanted = {file_name(i, pixel_hash(noise(seed_of(0, i))), ".png") for i in range(4)}
    assert content(tmp_path / "priors").keys() == wanted
    for path in (tmp_path / "priors").iterdir():
        digest = pixel_hash(imageio.decode_image(path.read_bytes()))
        assert path.stem.partition("-")[2] == digest


def test_more_makes_the_missing_ones_and_fewer_removes_none(draw, tmp_path):
    draw(Moody(), count=4)
    before = content(tmp_path / "priors")
    more = Moody()
    assert draw(more, count=6).counts == Counter({Status.FRESH: 4, Status.DONE: 2})
    assert sum(map(len, more.asked)) == 2
    after = content(tmp_path / "priors")
    assert before.items() < after.items()
    draw(Moody(), count=2)
    assert content(tmp_path / "priors") == after


def test_a_lost_image_comes_back_as_it_was(draw, tmp_path):
    draw(Moody())
    before = content(tmp_path / "priors")
    next((tmp_path / "priors").glob("1-*")).unlink()
    assert draw(Moody()).counts[Status.DONE] == 1
    assert content(tmp_path / "priors") == before


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_batch_size_changes_nothing(draw, tmp_path, batch_size):
    painter = Moody({seed_of(0, 1): BLACK, seed_of(0, 2): noise(seed_of(0, 0))})
    draw(painter, batch_size=batch_size)
    digests = [pixel_hash(noise(seed_of(0, i, t))) for i, t in [(0, 0), (1, 1), (2, 1), (3, 0)]]
    assert sorted(content(tmp_path / "priors")) == [f"{i}-{d}.png" for i, d in enumerate(digests)]


def test_out_of_memory_halves_and_stays_halved(draw, tmp_path):
    painter = Moody(fits=2)
    assert draw(painter, count=12, batch_size=8).counts[Status.DONE] == 12
    assert [len(batch) for batch in painter.asked] == [2] * 6
    whole = content(tmp_path / "priors")
    assert draw(Moody(), count=12, batch_size=1, force=True).counts[Status.DONE] == 12
    assert content(tmp_path / "priors") == whole
    report = draw(Moody(fits=0), count=13)
    assert [p.code for p in report.problems] == ["out-of-memory"]


@pytest.mark.parametrize(
    ("unfit", "reason"),
    [
        (BLACK, "it is black"),
        (np.full((16, 16, 3), 200, np.uint8), "one colour"),
        ("the model gave NaN", "NaN"),
        (noise(seed_of(0, 0)), "another image is the same"),
    ],
)
def test_unfit_is_drawn_again_and_given_up_in_the_end(draw, tmp_path, unfit, reason):
    once = Moody({seed_of(0, 1): unfit})
    assert draw(once).counts[Status.DONE] == 4
    again = file_name(1, pixel_hash(noise(seed_of(0, 1, 1))), ".png")
    assert again in content(tmp_path / "priors")

    never = Moody({seed_of(5, 1, attempt): unfit for attempt in range(TRIES)})
    never.instead[seed_of(5, 0)] = noise(seed_of(0, 0))
    report = draw(never, seed=5)
    assert report.counts == Counter({Status.DONE: 3, Status.FAILED: 1})
    assert report.exit_code == 1
    assert reason in report.problems[0].message
    assert f"{TRIES} tries" in report.problems[0].message


def test_other_settings_replace_ours_and_leave_other_peoples(draw, tmp_path):
    draw(Moody())
    first = content(tmp_path / "priors")
    theirs = imageio.encode_image(noise(99), "jpeg")
    (tmp_path / "priors" / "holiday.jpg").write_bytes(theirs)
    draw(Moody(), seed=1, count=5)
    second = content(tmp_path / "priors")
    assert second.pop("holiday.jpg") == theirs
    assert len(second) == 4, "theirs counts as one of five"
    assert not second.keys() & first.keys()


def test_what_workers_drew_alike_is_drawn_again_as_one_worker_would(draw, tmp_path):
    alike = {seed_of(0, 2): noise(seed_of(0, 0)), seed_of(0, 3): noise(seed_of(0, 0))}
    draw(Moody(alike))
    wanted = content(tmp_path / "priors")
    for path in (tmp_path / "priors").glob("[0-3]-*"):
        path.unlink()
    model = PipelineSpec(tmp_path / "model")
    options = {"prompts": ("a person",), "count": 4, "painter": lambda *_: Moody(alike)}
    stage = DrawPriors(tmp_path / "priors", tmp_path, model, Sampling(16, 16, 2), **options)
    run(stage, tmp_path, executor=each_for_itself)
    assert len(content(tmp_path / "priors")) == 4
    digests = [name.partition("-")[2] for name in content(tmp_path / "priors")]
    assert len(set(digests)) == 2, "three are alike"
    theirs = tmp_path / "priors" / f"9-{digests[0]}"
    theirs.write_bytes(b"of somebody else, under a name like ours")
    assert [name[0] for name in stage.remove_repeated()] == ["2", "3"]
    assert stage.remove_repeated() == []
    assert theirs.is_file()
    theirs.unlink()
    run(stage, tmp_path, executor=LocalExecutor(1))
    assert content(tmp_path / "priors") == wanted


def each_for_itself(stage, tasks, attempt, stop):
    """An executor with a worker for each task, all of which open the stage before any is done."""
    tasks = list(tasks)
    workers = [stage.open() for _ in tasks]
    for task, worker in zip(tasks, workers, strict=True):
        checked = attempt.load(worker, attempt.check(task))
        ((checked, computed),) = attempt.compute(worker, [checked])
        yield attempt.save(worker, checked, computed)


def test_an_edited_image_is_kept(draw, tmp_path):
    draw(Moody())
    edited = next((tmp_path / "priors").glob("2-*"))
    edited.write_bytes(imageio.encode_image(noise(7), "png"))
    before = edited.read_bytes()
    assert draw(Moody(), seed=1).counts == Counter({Status.DONE: 3, Status.KEPT: 1})
    assert edited.read_bytes() == before
    assert len(content(tmp_path / "priors")) == 4


def test_prompts_are_taken_in_turn(draw):
    painter = Moody()
    draw(painter, prompts=("a", "b", "c"), count=5)
    asked = [request.prompt for batch in painter.asked for request in batch]
    assert asked == ["a", "b", "c", "a", "b"]
    assert prompts_from("# x\n\n photo of {class} \n{class}!", "a dog", "f") == (
        "photo of a dog",
        "a dog!",
    )


def test_a_repetition_is_judged_alike_in_any_order():
    seen = Seen.of(["3-" + "a" * 40 + ".png", "notes.png"])
    assert seen.repeated(3, "a" * 40) is None
    assert seen.repeated(2, "a" * 40) is None
    assert seen.repeated(4, "a" * 40) == 3


def adopt(root: Path, **options) -> Report:
    stage = AdoptPriors(root / "priors", root, root / "old")
    return run(stage, root, executor=LocalExecutor(2), **options)


def test_adopting_checks_renames_and_leaves_the_source(tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    jpeg = imageio.encode_image(noise(1), "jpeg")
    (old / "a.JPG").write_bytes(jpeg)
    (old / "b.png").write_bytes(imageio.encode_image(noise(2), "png"))
    (old / "c.png").write_bytes(imageio.encode_image(noise(2), "png"))
    (old / "d.png").write_bytes(b"no picture")
    (old / "e.png").write_bytes(imageio.encode_image(BLACK, "png"))
    before = content(old)
    report = adopt(tmp_path)
    assert report.counts == Counter({Status.DONE: 2, Status.SKIPPED: 1, Status.FAILED: 2})
    assert {Path(p.key).name for p in report.problems} == {"d.png", "e.png"}
    names = [
        file_name(0, pixel_hash(imageio.decode_image(jpeg)), ".jpg"),
        file_name(1, pixel_hash(noise(2)), ".png"),
    ]
    assert list(content(tmp_path / "priors")) == names
    assert content(old) == before
    again = adopt(tmp_path)
    assert again.counts[Status.FRESH] == 2
    assert adopt(tmp_path, force=True).counts[Status.DONE] == 2
    assert list(content(tmp_path / "priors")) == names


def test_a_dry_run_writes_nothing(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a.png").write_bytes(imageio.encode_image(noise(2), "png"))
    stage = AdoptPriors(tmp_path / "priors", tmp_path, tmp_path / "old")
    assert [outcome.status for outcome in plan(stage, tmp_path)] == [Status.DONE]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]
