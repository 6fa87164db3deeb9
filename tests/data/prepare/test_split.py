"""A split of videos into training and validation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.data.prepare.splits import split


def of(chosen: dict[str, str], classes: dict[str, frozenset[str]], subset: str) -> set[str]:
    return {label for video, labels in classes.items() if chosen[video] == subset for label in labels}


def test_each_class_of_two_videos_is_in_both_subsets():
    classes = {f"v{n:02d}": frozenset({"common", f"rare{n // 2}"}) for n in range(20)}
    chosen = split(classes, 0.2)
    assert (
        of(chosen, classes, "training")
        == of(chosen, classes, "validation")
        == {"common", *(f"rare{n}" for n in range(10))}
    )
    assert sorted(chosen.values()).count("validation") == 10


def test_a_class_of_one_video_is_trained_on():
    classes = {f"v{n}": frozenset({"a", "b"}) for n in range(9)} | {"only": frozenset({"a", "once"})}
    for share in (0.1, 0.5, 0.8):
        chosen = split(classes, share)
        assert chosen["only"] == "training"
        assert of(chosen, classes, "validation") == {"a", "b"}
        assert sum(subset == "validation" for subset in chosen.values()) == round(share * 10)


def test_the_choice_is_the_same_in_any_order_and_mostly_stays_when_videos_are_added():
    classes = {f"v{n}": frozenset({f"c{n % 5}", f"c{n % 3}"}) for n in range(50)}
    first = split(classes, 0.2)
    assert split(dict(reversed(classes.items())), 0.2) == first
    more = split({**classes, "new1": frozenset({"c0"}), "new2": frozenset({"c1"})}, 0.2)
    assert sum(first[video] != more[video] for video in classes) <= 2


@pytest.mark.parametrize("classes", [{"a": {"x"}, "b": {"y"}}, {"a": {"x"}, "b": {"x"}}, {"a": {"x", "y"}, "b": {"y"}}])
def test_two_videos_are_one_for_each_subset(classes):
    chosen = split({video: frozenset(labels) for video, labels in classes.items()}, 0.2)
    assert sorted(chosen.values()) == ["training", "validation"]


@given(
    st.dictionaries(
        st.text("abcdef", min_size=1, max_size=4), st.frozensets(st.sampled_from("xyzw"), max_size=3), min_size=2
    ),
    st.floats(0.05, 0.95), st.integers(0, 5), st.data(),
)  # fmt: skip
def test_fixed_videos_stay_and_new_ones_never_take_a_class_from_training(classes, share, seed, data):
    fixed = data.draw(st.dictionaries(st.sampled_from(sorted(classes)), st.sampled_from(["training", "validation"])))
    chosen = split(classes, share, seed, fixed)
    assert chosen.keys() == classes.keys()
    assert fixed.items() <= chosen.items()
    if not fixed:
        assert set(chosen.values()) == {"training", "validation"}
    rest = {video: labels for video, labels in classes.items() if fixed.get(video) != "validation"}
    lost = of(chosen, classes, "validation") - of(chosen, classes, "training")
    several = {label for labels in rest.values() for label in labels if sum(label in o for o in rest.values()) > 1}
    # Only where every video is the only one of some class does one of them validate all the same.
    assert not lost & several
