"""`train.class_balance: repeat`: videos of rare classes come more than once in an epoch, the others once."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adatad.data.balance import ONE, balance_lines, class_factors, repeats_of, windows_of_epoch
from adatad.data.loader import EpochBatches, Share
from adatad.parallel.processes import Processes
from adatad.spec import SpecError, load
from adatad.training.loaders import training_loader
from adatad.training.resolve import resolve_run

videos = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), min_size=1, max_size=40)


def named(labels):
    return [SimpleNamespace(name=f"v{n}", labels=np.array(own)) for n, own in enumerate(labels)]


def test_a_class_in_a_quarter_as_many_videos_as_the_median_one_comes_twice_as_often():
    labels = [[0]] * 8 + [[1]] * 8 + [[2]] * 2
    assert class_factors(named(labels)) == {0: 1.0, 1: 1.0, 2: 2.0}
    repeats = repeats_of("repeat", named(labels))
    assert repeats.windows == 20
    assert (repeats.factors / ONE).tolist() == [1.0] * 16 + [2.0] * 2
    assert sorted(repeats.copies[repeats.order(0, 3)].tolist()) == sorted([*range(18), 16, 17])
    [line] = balance_lines("repeat", named(labels), ("a", "b", "rare one"))
    assert line == "class balance: 20 windows of 18 videos an epoch; rare are rare one x 2.00"


@given(videos, st.integers(0, 3), st.integers(0, 50))
def test_every_epoch_has_as_many_windows_and_each_video_its_factor_rounded(labels, seed, epoch):
    repeats = repeats_of("repeat", named(labels))
    order = repeats.order(seed, epoch)
    assert len(order) == len(set(order.tolist())) == repeats.windows == windows_of_epoch("repeat", named(labels))
    times = np.bincount(repeats.copies[order], minlength=len(labels))
    for count, factor in zip(times.tolist(), repeats.factors.tolist(), strict=True):
        assert max(1, factor // ONE) <= count <= -(-factor // ONE)
    # The first time keeps the number, and so the draws, that the video has without repeats.
    assert set(range(len(labels))) <= set(order.tolist())
    assert (order == repeats.order(seed, epoch)).all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True), st.integers(1, 9))
def test_balanced_classes_repeat_nothing(classes, number):
    assert windows_of_epoch("repeat", named([classes] * number)) == number
    assert repeats_of("none", named([classes] * number)) is None


def test_on_average_a_video_comes_as_often_as_its_factor_says():
    repeats = repeats_of("repeat", named([[0]] * 5 + [[1]] * 7 + [[2]]))
    total = sum(np.bincount(repeats.copies[repeats.order(1, epoch)], minlength=13) for epoch in range(2_000))
    assert np.abs(total / 2_000 - repeats.factors / ONE).max() < 0.05


@pytest.mark.parametrize("start", [(0, 0), (0, 2), (1, 1)])
def test_ranks_divide_an_epoch_and_a_resumed_run_goes_on_in_it(start):
    repeats = repeats_of("repeat", named([[0]] * 6 + [[1]]))
    alone = list(EpochBatches(7, Share(0, 1, 1, 2), 3, 2, start, repeats))
    ranks = [list(EpochBatches(7, Share(rank, 2, 1, 2), 3, 2, start, repeats)) for rank in range(2)]
    assert [[*first, *second] for first, second in zip(*ranks, strict=True)] == alone
    whole = list(EpochBatches(7, Share(0, 1, 1, 2), 3, 2, (0, 0), repeats))
    assert alone == whole[len(whole) - len(alone) :]


def test_a_run_has_the_steps_and_windows_of_its_repeats(tiny_spec):
    spec = load(tiny_spec, ["train.class_balance=repeat", "train.global_batch=1"])
    run = resolve_run(spec, Processes(0, 1, torch.device("cpu")))
    held = [set(video.labels.tolist()) for video in run.annotations.train]
    rarest = min(sum(label in own for own in held) for label in set().union(*held))
    assert rarest < len(held)
    assert run.steps_per_epoch == windows_of_epoch("repeat", run.annotations.train)
    assert run.steps_per_epoch >= math.ceil(len(held))
    loader = training_loader(run, (0, 0))
    names = [loader.dataset.video_of(batch[0]) for batch in loader.batches][: run.steps_per_epoch]
    assert {video.name for video in run.annotations.train} == set(names)


def test_it_is_refused_where_there_are_no_classes(tiny_spec):
    with pytest.raises(SpecError, match=r"train\.class_balance: repeat is without effect"):
        load(tiny_spec, ["train.class_balance=repeat", "model.detector.class_agnostic=true"])
