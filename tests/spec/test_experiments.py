"""The published rows: every fact of the reference's settings is in our specs, or is set aside here with the reason."""

import json
import re
from functools import cache
from pathlib import Path, PurePath
from unittest.mock import patch

import pytest
import torch

from adatad.cli.arguments import spec_path
from adatad.data.augment import OPERATIONS_PER_SAMPLE
from adatad.data.resize import AREA_FRACTIONS, ASPECTS, CANDIDATES
from adatad.models.actionformer import PRIOR
from adatad.models.backbone import PIXEL_MEAN, PIXEL_STD
from adatad.models.detector import build_model, freeze
from adatad.spec import Spec, SpecError, load
from adatad.spec.experiments import ExperimentError, all_experiments, find_experiment
from adatad.spec.sizes import PRESETS, resolve_backbone
from adatad.training.optimizer import parameter_groups

ROWS = {row["id"]: row for row in json.loads(Path(__file__).with_name("rows.json").read_text())["rows"]}
CONFIGS = Path(__file__).parents[2] / "configs"


@cache
def spec_of(reference: str) -> Spec:
    return load(find_experiment(reference).path, check_files=False)


def leaves(value, at=()):
    """(dotted key, value) of every leaf. Steps of a pipeline and groups of the optimizer are known by their names; the
    names, in order, are a leaf too."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, (*at, name))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        name = "op" if "op" in value[0] else "params"
        yield ".".join(at), [item[name] for item in value]
        for item in value:
            yield from leaves({key: inner for key, inner in item.items() if key != name}, (*at, item[name]))
    else:
        yield ".".join(at), value


def resized(spec: Spec) -> bool:
    return spec.data.window.kind == "resize"


def frames(spec: Spec) -> int:
    return spec.data.window.size_grid * spec.data.window.frames_per_position


def adapted(spec: Spec) -> bool:
    return spec.model.backbone.mode in ("adapter", "side")


def sizes(spec: Spec):
    return resolve_backbone(spec.model.backbone)


def blocks(spec: Spec) -> list[int]:
    given = spec.model.backbone.adapter.blocks
    return list(range(sizes(spec).depth)) if given == "all" else list(given)


def hidden(spec: Spec) -> int:
    return int(sizes(spec).width * spec.model.backbone.adapter.ratio)


def file_name(path: str | None) -> str | None:
    return path and PurePath(path).name


def blocked(spec: Spec) -> str | None:
    path = spec.data.blocked_videos
    if path is None:
        return None
    return f"{PurePath(path).name} beside the videos" if PurePath(path).parent == PurePath(spec.data.videos) else path


def train_steps(spec: Spec) -> list[str]:
    augment = spec.data.augment
    start = ["video_file", "open_video", "sample_frames", "decode_frames", "resize_short_side"]
    end = ["stack", "to_tensor", "collect"]
    if augment is None:
        return [*start, "center_crop_wh", *end]
    assert augment.rand_augment
    return [*start, "random_area_crop", "resize_exact_wh", "horizontal_flip", "rand_augment_15", "color_jitter", *end]


def short_side(spec: Spec) -> int:
    return spec.data.augment.crop_short_side_pixels if spec.data.augment else spec.data.size_pixels


def annotation_rule(spec: Spec) -> str:
    if resized(spec):
        return "seconds"
    return "frames_by_duration_ratio" if spec.data.fps is None else "frames_by_fixed_fps"


def levels(spec: Spec) -> int:
    return spec.model.detector.branch_blocks + 1


def attention_window(spec: Spec) -> int | list[int]:
    window = spec.model.detector.attention_window
    return window if isinstance(window, int) else list(window)


def classifier(name: str):
    return lambda spec: getattr(spec.postprocess.classifier, name)


def detector(name: str):
    return lambda spec: getattr(spec.model.detector, name)


def jitter(name: str):
    return lambda spec: getattr(spec.data.augment.color_jitter, name)


def pixels_twice(spec: Spec) -> list[int]:
    return [spec.data.size_pixels] * 2


def name_prefix(spec: Spec) -> str:
    prefix, _, rest = spec.data.pattern.partition("{name}")
    assert rest == ".mp4"
    return prefix


def published_map(tiou: str):
    return lambda spec: spec.published[tiou]


TIOUS = ("0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.75", "0.95")
SAMPLING = {"train": {True: "resize", False: "random_trunc"}, "test": {True: "resize", False: "sliding_window"}}
KIND = {"train": {True: "resize", False: "trunc"}, "test": {True: "resize", False: "sliding"}}
MODES = {"adapter": "adapter", "frozen": "frozen", "full": "fullft", "side": "side"}
FAMILIES = {
    "thumos": "THUMOS14", "activitynet": "ActivityNet-1.3", "multithumos": "MultiTHUMOS", "charades": "Charades",
    "epic": "EPIC-KITCHENS-100", "ego4d": "Ego4D-MQ",
}  # fmt: skip


def both(name: str, of_split) -> dict:
    """The same key of the training and the test set."""
    return {f"data.{split}.{name}": of_split(split) for split in ("train", "test")}


def each(name: str, value) -> dict:
    return both(name, lambda split: value)


MAPPED = {
    "id": lambda spec: spec.reference,
    "family": lambda spec: FAMILIES[spec.name.split("/")[0]],
    "task": lambda spec: next((task for task in ("noun", "verb") if spec.name.endswith(f"_{task}")), None),
    "mode": lambda spec: MODES[spec.model.backbone.mode],
    "data.annotation": lambda spec: file_name(spec.data.annotations),
    "data.class_list": lambda spec: file_name(spec.data.classes),
    "data.video_folder": lambda spec: file_name(spec.data.videos),
    **both("kind", lambda split: lambda spec: KIND[split][resized(spec)]),
    **each("annotation_rule", annotation_rule),
    "data.train.subset": lambda spec: spec.data.train_subset,
    "data.test.subset": lambda spec: spec.data.validation_subset,
    "evaluation.subset": lambda spec: spec.data.validation_subset,
    "data.train.filter_gt": lambda spec: bool(spec.data.filter_short),
    **each("class_agnostic", detector("class_agnostic")),
    **each("block_list", blocked),
    **each("resize_length", lambda spec: spec.data.window.size_grid),
    **each("fps", lambda spec: spec.data.fps or -1),
    **each("feature_stride", lambda spec: spec.data.window.stride_frames),
    **each("offset_frames", lambda spec: spec.data.window.offset_frames),
    "data.test.window_size": lambda spec: spec.data.window.size_grid,
    "data.test.window_overlap_ratio": lambda spec: spec.data.window.overlap,
    "data.test.window_stride": lambda spec: int(spec.data.window.size_grid * (1 - spec.data.window.overlap)),
    **each("pipeline.video_file.name_prefix", name_prefix),
    **both("pipeline.sample_frames.method", lambda split: lambda spec: SAMPLING[split][resized(spec)]),
    **each("pipeline.sample_frames.scale_factor", lambda spec: spec.data.window.frames_per_position),
    "data.train.pipeline.sample_frames.trunc_len": lambda spec: spec.data.window.size_grid,
    "data.train.pipeline.sample_frames.trunc_thresh": lambda spec: spec.data.window.min_visible,
    "data.train.pipeline.sample_frames.crop_ratio": lambda spec: list(spec.data.window.crop_ratio),
    "data.train.pipeline": train_steps,
    "data.test.pipeline": lambda spec: train_steps(spec.model_copy(update={"data": without_augmentation(spec)})),
    "data.train.pipeline.resize_short_side.size": short_side,
    "data.test.pipeline.resize_short_side.size": lambda spec: spec.data.size_pixels,
    "data.train.pipeline.center_crop_wh.size": pixels_twice,
    "data.test.pipeline.center_crop_wh.size": pixels_twice,
    "data.train.pipeline.random_area_crop.area": lambda spec: list(AREA_FRACTIONS),
    "data.train.pipeline.random_area_crop.aspect": lambda spec: list(ASPECTS),
    "data.train.pipeline.random_area_crop.attempts": lambda spec: CANDIDATES,
    "data.train.pipeline.resize_exact_wh.size": pixels_twice,
    "data.train.pipeline.horizontal_flip.p": lambda spec: spec.data.augment.flip,
    "data.train.pipeline.rand_augment_15.n": lambda spec: OPERATIONS_PER_SAMPLE,
    **{f"data.train.pipeline.color_jitter.{name}": jitter(name) for name in ("brightness", "contrast", "saturation")},
    "data.train.pipeline.color_jitter.hue": jitter("hue"),
    "input.window": lambda spec: spec.data.window.size_grid,
    "input.scale_factor": lambda spec: spec.data.window.frames_per_position,
    "input.frames": frames,
    "input.clips": lambda spec: frames(spec) // spec.model.backbone.clip_frames,
    "input.frames_per_clip": lambda spec: spec.model.backbone.clip_frames,
    "input.pixels": lambda spec: spec.data.size_pixels,
    "input.mean": lambda spec: list(PIXEL_MEAN),
    "input.std": lambda spec: list(PIXEL_STD),
    "backbone.embed": lambda spec: sizes(spec).width,
    "backbone.depth": lambda spec: sizes(spec).depth,
    "backbone.heads": lambda spec: sizes(spec).heads,
    "backbone.patch": lambda spec: sizes(spec).patch,
    "backbone.mlp_ratio": lambda spec: PRESETS[spec.model.backbone.preset].mlp_ratio,
    "backbone.mlp_hidden": lambda spec: sizes(spec).mlp_width,
    "backbone.tubelet": lambda spec: spec.model.backbone.tubelet,
    "backbone.frames_per_clip": lambda spec: spec.model.backbone.clip_frames,
    "backbone.pos_embed_image": lambda spec: sizes(spec).position_grid * sizes(spec).patch,
    "backbone.drop_path": lambda spec: spec.model.backbone.drop_path,
    "backbone.pretrained": lambda spec: file_name(spec.model.backbone.weights),
    "adapter": lambda spec: None if not adapted(spec) else "one",
    "adapter.blocks": blocks,
    "adapter.ratio": lambda spec: spec.model.backbone.adapter.ratio,
    "adapter.hidden": hidden,
    "adapter.kernel": lambda spec: spec.model.backbone.adapter.kernel,
    "adapter.dilation": lambda spec: spec.model.backbone.adapter.dilation,
    "adapter.temporal_size": lambda spec: frames(spec) // spec.model.backbone.tubelet,
    "feature_pooling.interpolate_to": lambda spec: spec.data.window.size_grid,
    "projection.in_ch": lambda spec: sizes(spec).width,
    "projection.out_ch": detector("width"),
    "projection.arch": lambda spec: (
        [getattr(spec.model.detector, f"{n}") for n in ("embed_convs", "stem_blocks")]
        + [spec.model.detector.branch_blocks]
    ),
    "projection.kernel": detector("embed_kernel"),
    "projection.proj_dropout": detector("dropout"),
    "projection.heads": detector("heads"),
    "projection.attn_window": attention_window,
    "projection.drop_path": detector("drop_path"),
    "projection.abs_pos": detector("absolute_positions"),
    "projection.max_seq_len": detector("max_length"),
    "projection.input_dropout": detector("input_dropout"),
    "neck.kind": lambda spec: {"identity": "identity pyramid with norm"}[spec.model.detector.neck],
    "neck.in_ch": detector("width"),
    "neck.out_ch": detector("width"),
    "neck.levels": levels,
    "head.classes": lambda spec: 1 if spec.model.detector.class_agnostic else spec.data.class_count,
    "head.in_ch": detector("width"),
    "head.feat_ch": detector("width"),
    "head.convs": detector("head_convs"),
    "head.prior_prob": lambda spec: PRIOR,
    "head.strides": lambda spec: [2**level for level in range(levels(spec))],
    "head.ranges": lambda spec: [list(pair) for pair in spec.model.detector.regression_ranges],
    "head.loss_normalizer": detector("normalizer_start"),
    "head.normalizer_momentum": detector("normalizer_momentum"),
    "head.center_sample": detector("center_sampling"),
    "head.center_radius": detector("center_radius"),
    "head.label_smoothing": detector("label_smoothing"),
    "head.loss_weight": detector("regression_weight"),
    "head.filter_similar_gt": detector("similar_segments_only"),
    "loss.cls": lambda spec: (
        f"sigmoid focal alpha {spec.model.detector.focal_alpha:g} gamma {spec.model.detector.focal_gamma:g}"
    ),
    "loss.reg": lambda spec: {"diou": "DIoU 1-D"}[spec.model.detector.regression_loss],
    "solver.batch_total": lambda spec: spec.train.global_batch,
    "solver.workers": lambda spec: spec.data.workers,
    "solver.clip_grad_norm": lambda spec: spec.train.clip_norm,
    "solver.ema": lambda spec: spec.ema.decay,
    "optimizer.betas": lambda spec: list(spec.optimizer.betas),
    "optimizer.eps": lambda spec: spec.optimizer.eps,
    "scheduler.warmup_epochs": lambda spec: spec.schedule.warmup_epochs,
    "scheduler.max_epochs": lambda spec: spec.schedule.epochs,
    "scheduler.end_epoch": lambda spec: spec.schedule.end_epoch or spec.schedule.epochs,
    "scheduler.min_lr": lambda spec: spec.schedule.eta_min,
    "post.nms.kind": lambda spec: f"{spec.postprocess.nms.kind} {spec.postprocess.nms.method}",
    "post.nms.sigma": lambda spec: spec.postprocess.nms.sigma,
    "post.nms.max_seg": lambda spec: spec.postprocess.nms.max_segments,
    "post.nms.min_score": lambda spec: spec.postprocess.nms.min_score,
    "post.nms.multiclass": lambda spec: spec.postprocess.nms.multiclass,
    "post.nms.voting": lambda spec: spec.postprocess.nms.voting_threshold,
    "post.nms.voting_active": lambda spec: not spec.postprocess.nms.multiclass,
    "post.pre_nms_thresh": lambda spec: spec.postprocess.pre_nms_threshold,
    "post.pre_nms_topk": lambda spec: spec.postprocess.pre_nms_topk,
    "post.pre_nms_active": lambda spec: not spec.model.detector.class_agnostic,
    "post.nms_stage": lambda spec: (
        "per video, before seconds" if resized(spec) else "per video after all windows are merged"
    ),
    "post.external_classifier": lambda spec: spec.postprocess.classifier,
    "post.external_classifier.kind": classifier("kind"),
    "post.external_classifier.file": lambda spec: file_name(spec.postprocess.classifier.file),
    "post.external_classifier.topk": classifier("topk"),
    "evaluation.tious": lambda spec: list(spec.evaluate.tious),
    "evaluation.recall_topk": lambda spec: list(spec.evaluate.top_k) or None,
    "evaluation.blocked_videos_file": lambda spec: file_name(spec.evaluate.blocked_videos),
    "workflow.eval_every_epochs": lambda spec: spec.train.evaluate_every_epochs,
    "workflow.eval_start_epoch": lambda spec: spec.train.evaluate_from_epoch,
    "published": lambda spec: spec.published,
    "published.pixels": lambda spec: spec.data.size_pixels,
    "published.setting": lambda spec: MODES[spec.model.backbone.mode],
    "published.average_mAP": lambda spec: spec.published["average_mAP"],
    **{f"published.mAP.{tiou}": published_map(tiou) for tiou in TIOUS},
}
"""Key of a row to what the spec, as it is resolved, says of it."""

FIXED = {
    "data.train.test_mode": False,
    "data.test.test_mode": True,
    **each("sample_stride", 1),
    "data.test.filter_gt": False,
    **each("pipeline.video_file.ext", "mp4"),
    **each("pipeline.sample_frames.clips", 1),
    **each("pipeline.decode_frames.mode", "accurate"),
    **each("pipeline.resize_short_side.interp", "bilinear"),
    "data.train.pipeline.resize_exact_wh.interp": "bilinear",
    "data.train.pipeline.random_area_crop.note": "crop only, no resize",
    "data.train.pipeline.rand_augment_15.level": 0.9,
    "backbone.kind": "ViT (VideoMAE)",
    "backbone.qkv_bias": True,
    "backbone.ln_eps": 1e-6,
    "feature_pooling.reduce": "mean over clips dim (1), height, width",
    "feature_pooling.join": "clips joined in time",
    "feature_pooling.interpolate_mode": "linear, align_corners False",
    "projection.norm": "LN",
    "projection.attn_dropout": 0.0,
    "head.kernel": 3,
    "solver.shuffle": True,
    "solver.drop_last": True,
    "optimizer.kind": "AdamW",
    "scheduler.kind": "linear warm-up then cosine, per step",
    "scheduler.warmup_start_lr": 0.0,
    "evaluation.kind": "mAP",
}
"""What our code does always, so that no spec can say otherwise; a row with another value fails."""

IGNORED = {
    r"data\.val\..*": "the loss on the validation set, which no row ever computes (workflow.val_loss_every is -1)",
    r"data\.(train|test)\.drop_label_ambiguous": "nothing here is ever trained on 'Ambiguous', which only THUMOS has",
    r"data\.test\.gt_completeness_thresh": "the test set has no instances to be complete",
    r"data\.(train|test)\.pipeline\.open_video\.(threads|decoder)": "how a file is decoded changes no frame",
    r"data\.(train|test)\.pipeline\.(stack|to_tensor|collect)\..*": "names of tensors inside the reference",
    r"input\.layout": "the reference's layout of a tensor",
    r"backbone\.activation_checkpointing": "memory.policy: changes memory, not results",
    r"backbone\.norm_layers_forced_eval": "LayerNorm does the same in both modes, and is frozen where the rest is",
    r"solver\.eval_batch_total": "here one window at a time: detections don't depend on it",
    r"solver\.amp": "train.precision auto: bf16 on GPUs that have it, with fp16's range problems gone; fp16 elsewhere",
    r"solver\.fp16_gradient_compress": "gradients are exchanged as they are: few are left without the frozen ones",
    r"solver\.static_graph": "a setting of DDP that frozen parameters need in the reference",
    r"optimizer\.(groups|not_optimised).*": "compared with the groups of the built model below",
    r"workflow\.(log_every|checkpoint_every_epochs|val_loss_every)": "what is logged and saved changes no result",
    r"published\.(dataset|backbone|gpus|frames|classifier|task|average_over)": "words about the row; docs/model-zoo.md",
}
"""Keys that no spec answers to, each with its reason."""


def without_augmentation(spec: Spec):
    return spec.data.model_copy(update={"augment": None})


def ignored(key: str) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in IGNORED)


def test_all_rows_have_their_specs_and_all_specs_their_rows():
    assert {row.reference for row in all_experiments()} == ROWS.keys()
    assert len(all_experiments()) == len(ROWS) == 51


@pytest.mark.parametrize("reference", ROWS)
def test_every_fact_of_a_row_is_in_its_spec(reference):
    spec = spec_of(reference)
    assert spec.compat == "reference"
    unmapped, different = [], {}
    for key, value in leaves(ROWS[reference]):
        if ignored(key):
            continue
        if key not in MAPPED and key not in FIXED:
            unmapped.append(key)
            continue
        ours = MAPPED[key](spec) if key in MAPPED else FIXED[key]
        if ours != (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value):
            different[key] = (ours, value)
    assert not unmapped, "say in MAPPED, FIXED or IGNORED what becomes of them"
    assert not different, "(ours, the reference's)"


@pytest.mark.parametrize("reference", ROWS)
def test_a_spec_says_nothing_of_published_figures_that_its_row_does_not(reference):
    published = ROWS[reference]["published"]
    expected = published and {**published["mAP"], "average_mAP": published["average_mAP"]}
    assert spec_of(reference).published == expected


def test_every_entry_of_the_tables_is_of_use():
    keys = {key for row in ROWS.values() for key, _ in leaves(row)}
    assert not (MAPPED.keys() | FIXED.keys()) - keys
    assert all(any(re.fullmatch(pattern, key) for key in keys) for pattern in IGNORED)
    assert not MAPPED.keys() & FIXED.keys()


def test_an_unmapped_key_and_another_value_are_seen(monkeypatch):
    reference = next(iter(ROWS))
    row = ROWS[reference]
    monkeypatch.setitem(ROWS, reference, {**row, "surprise": {"new": 1}})
    with pytest.raises(AssertionError, match=r"surprise\.new"):
        test_every_fact_of_a_row_is_in_its_spec(reference)
    monkeypatch.setitem(ROWS, reference, {**row, "input": {**row["input"], "window": 191}})
    with pytest.raises(AssertionError, match=r"input\.window"):
        test_every_fact_of_a_row_is_in_its_spec(reference)


# Of the reference's models: all parameters, those of the ViT with its unused final norm, adapters, detector, trained.
COUNTS = {
    "thumos/s_768x160_adapter": (49_582_504, 21_879_936, 1_006_860, 26_695_708, 27_702_568),
    "thumos/s_768x160_side": (49_078_306, 21_879_168, 503_430, 26_695_708, 27_199_138),
    "thumos/b_768x160_adapter": (117_517_096, 86_227_200, 4_004_364, 27_285_532, 31_289_896),
    "thumos/l_768x160_adapter": (345_756_724, 303_860_736, 14_217_240, 27_678_748, 41_895_988),
    "thumos/h_768x160_adapter": (689_272_636, 631_607_040, 29_593_632, 28_071_964, 57_665_596),
    "thumos/g_768x160_adapter": (1_084_625_604, 1_011_610_752, 44_746_280, 28_268_572, 73_014_852),
    "thumos/g_1536x224_adapter": (1_062_252_464, 1_011_610_752, 22_373_140, 28_268_572, 50_641_712),
    "thumos/g_1536x224_side": (1_050_457_648, 1_011_607_936, 10_581_140, 28_268_572, 38_849_712),
    "multithumos/s_768x160_adapter": (44_116_949, 21_879_936, 1_006_860, 21_230_153, 22_237_013),
    "multithumos/b_768x160_adapter": (112_051_541, 86_227_200, 4_004_364, 21_819_977, 25_824_341),
    "multithumos/l_768x160_adapter": (340_291_169, 303_860_736, 14_217_240, 22_213_193, 36_430_433),
    "multithumos/h_768x160_adapter": (683_807_081, 631_607_040, 29_593_632, 22_606_409, 52_200_041),
    "multithumos/g_768x160_adapter": (1_079_160_049, 1_011_610_752, 44_746_280, 22_803_017, 67_549_297),
    "multithumos/g_1536x224_adapter": (1_056_786_909, 1_011_610_752, 22_373_140, 22_803_017, 45_176_157),
    "charades/s_512x160_adapter": (56_117_299, 21_879_936, 1_006_860, 33_230_503, 34_237_363),
    "charades/b_512x160_adapter": (124_051_891, 86_227_200, 4_004_364, 33_820_327, 37_824_691),
    "charades/l_512x160_adapter": (352_291_519, 303_860_736, 14_217_240, 34_213_543, 48_430_783),
    "charades/h_512x160_adapter": (695_807_431, 631_607_040, 29_593_632, 34_606_759, 64_200_391),
    "charades/g_512x160_adapter": (1_091_160_399, 1_011_610_752, 44_746_280, 34_803_367, 79_549_647),
    "activitynet/s_768x160_adapter": (29_731_989, 21_879_936, 1_006_860, 6_845_193, 7_852_053),
    "activitynet/b_768x160_adapter": (97_371_669, 86_227_200, 4_004_364, 7_140_105, 11_144_469),
    "activitynet/l_768x160_adapter": (325_414_689, 303_860_736, 14_217_240, 7_336_713, 21_553_953),
    "activitynet/l_768x224_adapter_cls": (346_033_384, 303_860_736, 14_217_240, 27_955_408, 42_172_648),
    "activitynet/h_768x160_adapter": (668_733_993, 631_607_040, 29_593_632, 7_533_321, 37_126_953),
    "activitynet/g_768x160_adapter": (1_063_988_657, 1_011_610_752, 44_746_280, 7_631_625, 52_377_905),
    "activitynet/g_768x224_adapter": (1_041_615_517, 1_011_610_752, 22_373_140, 7_631_625, 30_004_765),
    "epic/l_6144x160_adapter_noun": (346_176_325, 303_860_736, 14_217_240, 28_098_349, 42_315_589),
    "epic/l_6144x160_adapter_verb": (345_875_073, 303_860_736, 14_217_240, 27_797_097, 42_014_337),
    "ego4d/l_7200x192_adapter": (351_434_886, 303_860_736, 7_108_620, 40_465_530, 47_574_150),
}


def expected_counts(spec: Spec) -> tuple[int, int, int, int]:
    """(all, ViT, adapters, trained) as our model has them: without the final norm, which nothing uses."""
    mode = spec.model.backbone.mode
    name = re.sub(r"_internvideo2?$", "", spec.name)
    like = name if adapted(spec) else name.replace(mode, "adapter")
    _, vit, adapters, in_detector, trained = COUNTS[like]
    vit -= 0 if mode == "side" else 2 * sizes(spec).width
    match mode:
        case "frozen":
            return vit + in_detector, vit, 0, in_detector
        case "full":
            return vit + in_detector, vit, 0, vit + in_detector
    return vit + adapters + in_detector, vit, adapters, trained


@cache
def built(model_json: str, classes: int, reference: str):
    """The model of a row on the meta device, one for all rows that have the same. Initial values, which no parameter
    has there, are what takes the time."""
    with torch.device("meta"), patch("torch.nn.init.kaiming_uniform_"), patch("adatad.models.adapter.trunc_normal_"):
        model = build_model(spec_of(reference).model, classes)
    freeze(model, spec_of(reference).model.backbone)
    return model


@cache
def representative(model_json: str, classes: int) -> str:
    """The first row with this model."""
    return next(
        key for key in ROWS if (without_weights(spec_of(key)), ROWS[key]["head"]["classes"]) == (model_json, classes)
    )


def without_weights(spec: Spec) -> str:
    return spec.model.model_dump_json(exclude={"backbone": {"weights"}})


@pytest.mark.parametrize("reference", ROWS)
def test_a_model_has_the_reference_s_parameters_and_optimizer_groups(reference):
    spec, classes = spec_of(reference), ROWS[reference]["head"]["classes"]
    model_json = without_weights(spec)
    model = built(model_json, classes, representative(model_json, classes))
    numbers = {name: parameter.numel() for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, spec.optimizer)
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    in_backbone = {name: number for name, number in numbers.items() if name.startswith("backbone.")}
    adapters = sum(number for name, number in in_backbone.items() if "adapter" in name)
    vit = sum(in_backbone.values()) - adapters
    assert (sum(numbers.values()), vit, adapters, trained) == expected_counts(spec)

    optimizer = ROWS[reference]["optimizer"]
    rates = [(group["lr"], group["weight_decay"]) for group in optimizer["groups"]]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == rates
    names = [name for group in groups for name in group["parameter_names"] if name.startswith("backbone.")]
    match optimizer["not_optimised"]:
        case None:
            assert len(names) == len(in_backbone)
        case "whole backbone":
            assert not names
        case "backbone parameters whose name does not contain 'adapter'":
            assert set(names) == {name for name in in_backbone if "adapter" in name}


@pytest.mark.parametrize("reference", ROWS)
def test_the_reference_s_paths_are_answered_with_ours(reference, capsys):
    row = find_experiment(reference)
    assert Path(spec_path(f"configs/adatad/{reference}.py")).samefile(row.path)
    note = f"note: configs/adatad/{reference}.py is OpenTAD's name of configs/{row.name}.yaml, which is used\n"
    assert capsys.readouterr().err == note
    with pytest.raises(SpecError, match=re.escape(f"here it is configs/{row.name}.yaml")):
        load(f"configs/adatad/{reference}.py")
    assert (
        find_experiment(f"/somewhere/configs/adatad/{reference}.py")
        == find_experiment(f"configs/{row.name}.yaml")
        == row
    )
    size, window, mode = row.name.split("/")[1].split("_")[:3]
    assert row.path == CONFIGS / f"{row.name}.yaml"
    assert (size, window) == (
        {384: "s", 768: "b", 1024: "l", 1280: "h", 1408: "g"}[ROWS[reference]["backbone"]["embed"]],
        f"{ROWS[reference]['input']['frames']}x{ROWS[reference]['input']['pixels']}",
    )
    assert MODES[mode] == ROWS[reference]["mode"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("thumos-s-768", "thumos/s_768x160_adapter"),
        ("thumos g 1536", "thumos/g_1536x224_adapter"),
        ("anet-l-cls", "activitynet/l_768x224_adapter_cls"),
        ("activitynet-g-224", "activitynet/g_768x224_adapter"),
        ("multi_thumos-g-768", "multithumos/g_768x160_adapter"),
        ("thumos-b-768-fullft", "thumos/b_768x160_full"),
        ("epic-noun", "epic/l_6144x160_adapter_noun"),
    ],
)
def test_a_row_is_found_by_its_words(words, name):
    assert find_experiment(words).name == name


def test_a_name_of_no_row_or_of_several_says_so():
    with pytest.raises(ExperimentError, match="could be activitynet/g_768x160_adapter, activitynet/g_768x224_adapter"):
        find_experiment("anet-g")
    with pytest.raises(ExperimentError, match="did you mean thumos/s_768x160_adapter"):
        find_experiment("thumos/s_768x160_adaptr")
    with pytest.raises(SpecError, match=r"nearest is thumos/e2e_thumos_videomae_s_768x1_160_adapter\.py, here"):
        load("configs/adatad/thumos/e2e_thumos_videomae_s_768x1_160_adaptor.py")
