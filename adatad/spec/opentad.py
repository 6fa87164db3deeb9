"""OpenTAD's names of settings and flags, and words that people use for ours: what hints are made of.

The tables of docs/from-opentad.md say the same to readers; a test holds the two together.
"""

from __future__ import annotations

from typing import NamedTuple


class Renamed(NamedTuple):
    """A key of OpenTAD's configurations and ours.

    there: OpenTAD's, * for any word, a single word for one in any section. here: ours. value: one that ours takes.
    with_value: whether a hint names that value, because what the key takes has changed. note: for the page.
    """

    there: str
    here: str
    value: str
    with_value: bool = False
    note: str = ""


# The first entry that fits counts: entries for one section stand before those for any.
KEYS = (
    Renamed("dataset.*.ann_file", "data.annotations", "a.json"),
    Renamed("dataset.*.class_map", "data.classes", "classes.txt"),
    Renamed("dataset.*.data_path", "data.videos", "videos"),
    Renamed("dataset.train.subset_name", "data.train_subset", "training"),
    Renamed("dataset.val.subset_name", "data.validation_subset", "validation"),
    Renamed("dataset.test.subset_name", "data.validation_subset", "validation"),
    Renamed("evaluation.subset", "data.validation_subset", "validation"),
    Renamed("dataset.*.block_list", "data.blocked_videos", "blocked.txt"),
    Renamed("dataset.train.filter_gt", "data.filter_short", "true"),
    Renamed("dataset.*.class_agnostic", "model.detector.class_agnostic", "true"),
    # Windows: there a feature's stride and a window's, here video frames and grid positions.
    Renamed("dataset.*.fps", "data.fps", "30", note="-1, from the file, is null here"),
    Renamed("dataset.*.feature_stride", "data.window.stride_frames", "4", with_value=True),
    Renamed(
        "dataset.*.sample_stride",
        "data.window.stride_frames",
        "4",
        with_value=True,
        note="the product of both, in video frames",
    ),
    Renamed("dataset.*.window_size", "data.window.size_grid", "768"),
    Renamed("dataset.*.trunc_len", "data.window.size_grid", "768"),
    Renamed("dataset.*.resize_length", "data.window.size_grid", "768"),
    Renamed("dataset.*.window_overlap_ratio", "data.window.overlap", "0.5"),
    Renamed("scale_factor", "data.window.frames_per_position", "1"),
    Renamed("trunc_thresh", "data.window.min_visible", "0.75"),
    Renamed("crop_ratio", "data.window.crop_ratio", "[0.9,1.0]"),
    Renamed("dataset.*.method", "data.window.kind", "resize", with_value=True),
    # Frames: there a list of steps with classes' names, here a size and a section for training's random steps.
    Renamed("dataset.*.pipeline", "data.augment", "{flip: 0.5}", with_value=True, note="the image steps of training"),
    Renamed("img_size", "data.size_pixels", "160"),
    Renamed("prefix", "data.pattern", '"v_{name}.mp4"', with_value=True, note="the whole file name"),
    # Backbone: there an mmaction configuration within ours.
    Renamed("model.backbone.custom.pretrain", "model.backbone.weights", "weights.pth"),
    Renamed("model.backbone.backbone.embed_dims", "model.backbone.width", "384", note="or `preset`"),
    Renamed("model.backbone.backbone.depth", "model.backbone.depth", "12"),
    Renamed("model.backbone.backbone.num_heads", "model.backbone.heads", "6"),
    Renamed("model.backbone.backbone.drop_path_rate", "model.backbone.drop_path", "0.1"),
    Renamed("adapter_index", "model.backbone.adapter.blocks", "[0,1]"),
    Renamed("adapter_mlp_ratio", "model.backbone.adapter.ratio", "0.25"),
    Renamed("with_cp", "memory.policy", "block", with_value=True, note="[memory.md](memory.md)"),
    Renamed(
        "norm_eval",
        "model.backbone.mode",
        "adapter",
        with_value=True,
        note="with freezing in forward: adapter, side, frozen, full",
    ),
    # Detector: `arch` is (embedding convolutions, stem blocks, branch blocks).
    Renamed("model.projection.arch.0", "model.detector.embed_convs", "2"),
    Renamed("model.projection.arch.1", "model.detector.stem_blocks", "2"),
    Renamed("model.projection.arch.2", "model.detector.branch_blocks", "5"),
    Renamed("n_mha_win_size", "model.detector.attention_window", "-1"),
    Renamed("proj_pdrop", "model.detector.dropout", "0.1"),
    Renamed("use_abs_pe", "model.detector.absolute_positions", "false"),
    Renamed("max_seq_len", "model.detector.max_length", "768"),
    Renamed("input_pdrop", "model.detector.input_dropout", "0.1"),
    Renamed("regression_range", "model.detector.regression_ranges", "[[0,4],[4,8],[8,16],[16,32],[32,64],[64,10000]]"),
    Renamed("loss_normalizer", "model.detector.normalizer_start", "100"),
    Renamed("loss_weight", "model.detector.regression_weight", "1.0"),
    Renamed("label_smoothing", "model.detector.label_smoothing", "0.1"),
    Renamed("filter_similar_gt", "model.detector.similar_segments_only", "true"),
    # Schedule and loop: there spread over scheduler, workflow and solver.
    Renamed("scheduler.warmup_epoch", "schedule.warmup_epochs", "5"),
    Renamed("scheduler.max_epoch", "schedule.epochs", "100"),
    Renamed("workflow.end_epoch", "schedule.end_epoch", "60"),
    Renamed("workflow.val_start_epoch", "train.evaluate_from_epoch", "40"),
    Renamed("workflow.val_eval_interval", "train.evaluate_every_epochs", "2"),
    Renamed(
        "workflow.checkpoint_interval",
        "train.checkpoint_every_steps",
        "100",
        with_value=True,
        note="epochs there, steps here",
    ),
    Renamed("solver.train.batch_size", "train.global_batch", "4", note="of all processes, there as here"),
    Renamed("solver.*.num_workers", "data.workers", "2"),
    Renamed("solver.clip_grad_norm", "train.clip_norm", "1.0"),
    Renamed("solver.amp", "train.precision", "auto", with_value=True),
    Renamed("solver.ema", "ema.decay", "0.999", with_value=True, note="always on"),
    # Scores: the names of NMS are mostly the same; those that aren't stand before the *.
    Renamed("post_processing.nms.max_seg_num", "postprocess.nms.max_segments", "2000"),
    Renamed("post_processing.nms.voting_thresh", "postprocess.nms.voting_threshold", "0.7"),
    Renamed("post_processing.nms.*", "postprocess.nms", "{}", note="the same names"),
    Renamed("post_processing.external_cls", "postprocess.classifier", "null", note="[below](#external-classifiers)"),
    Renamed("pre_nms_thresh", "postprocess.pre_nms_threshold", "0.001"),
    Renamed("pre_nms_topk", "postprocess.pre_nms_topk", "2000"),
    Renamed("evaluation.tiou_thresholds", "evaluate.tious", "[0.3,0.5]"),
    Renamed("evaluation.top_k", "evaluate.top_k", "[1,5]"),
    Renamed("evaluation.blocked_videos", "evaluate.blocked_videos", "blocked.json"),
    Renamed("work_dir", "run.root", "runs", note="a run lives in `runs/<spec name>/id<N>/`"),
)
"""Keys of OpenTAD, in the order of the page."""

# Optimizer and batches.
WORDS = {
    "learning_rate": "optimizer.lr",
    "base_lr": "optimizer.lr",
    "wd": "optimizer.weight_decay",
    "batch": "train.global_batch",
    "batch_size": "train.global_batch",
    "grad_accum": "train.accumulation",
    "gradient_accumulation": "train.accumulation",
    "gradient_accumulation_steps": "train.accumulation",
    "accumulate_grad_batches": "train.accumulation",
    "num_epochs": "schedule.epochs",
    "max_epochs": "schedule.epochs",
    "max_epoch": "schedule.epochs",
    "epoch": "schedule.epochs",
    "warmup": "schedule.warmup_epochs",
    "warmup_epoch": "schedule.warmup_epochs",
    "random_seed": "train.seed",
    "amp": "train.precision",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "dtype": "train.precision",
    "clip_grad": "train.clip_norm",
    "clip_grad_norm": "train.clip_norm",
    "grad_clip": "train.clip_norm",
    "max_grad_norm": "train.clip_norm",
    "gradient_clip_val": "train.clip_norm",
    # Loading, evaluation and checkpoints.
    "num_workers": "data.workers",
    "eval_interval": "train.evaluate_every_epochs",
    "patience": "train.stop_after",
    "early_stopping": "train.stop_after",
    "early_stopping_patience": "train.stop_after",
    "eval_every": "train.evaluate_every_epochs",
    "save_every": "train.checkpoint_every_steps",
    "checkpoint_interval": "train.checkpoint_every_steps",
    "freeze": "model.freeze",
    "frozen": "model.backbone.mode",
    "freeze_backbone": "model.backbone.mode",
    "load_from": "model.init_from",
    "finetune_from": "model.init_from",
    "pretrain": "model.backbone.weights",
    "pretrained": "model.backbone.weights",
    "checkpoint": "model.backbone.weights",
    "gradient_checkpointing": "memory.policy",
    "activation_checkpointing": "memory.policy",
    "num_classes": "data.class_count",
    "class_names": "data.classes",
    "ann_file": "data.annotations",
    "annotation_file": "data.annotations",
    "video_dir": "data.videos",
    "data_path": "data.videos",
    "img_size": "data.size_pixels",
    "image_size": "data.size_pixels",
    "resolution": "data.size_pixels",
    "num_frames": "data.window.size_grid",
    "window_size": "data.window.size_grid",
    "stride": "data.window.stride_frames",
    "ema_decay": "ema.decay",
    "nms_sigma": "postprocess.nms.sigma",
    "max_seg_num": "postprocess.nms.max_segments",
    "max_per_video": "postprocess.nms.max_segments",
    "score_thresh": "postprocess.nms.min_score",
    "tiou_thresholds": "evaluate.tious",
    "tiou": "evaluate.tious",
    "output_dir": "run.root",
    "out_dir": "run.root",
    "save_dir": "run.root",
    "exp_id": "run.id",
    "zero_stage": "parallel.engine",
    "strategy": "parallel.engine",
    "backend": "parallel.engine",
}
"""Words of other projects for keys of ours, in whatever section they are looked for."""

# Each is declared as a hidden option, so that the error can say this instead of "unrecognized arguments".
FLAGS = {
    "--seed": ("N", "--set train.seed={}"),
    "--not_eval": ("", "--set train.evaluate_from_epoch=1000000 (the last epoch is evaluated all the same)"),
    "--disable_deterministic": ("", "nothing in its place on a GPU, where train.deterministic is off unless set"),
    "--epochs": ("N", "--set schedule.epochs={}"),
    "--lr": ("RATE", "--set optimizer.lr={}"),
    "--learning-rate": ("RATE", "--set optimizer.lr={}"),
    "--batch-size": ("N", "--set train.global_batch={}"),
    "--batch_size": ("N", "--set train.global_batch={}"),
    "--num-workers": ("N", "--set data.workers={}"),
    "--work-dir": ("FOLDER", "--set run.root={}"),
    "--work_dir": ("FOLDER", "--set run.root={}"),
}
"""Flags of OpenTAD and of other trainers that no command here has: what they take, and what to write instead."""


def renamed(key: tuple[str | int, ...]) -> Renamed | None:
    """Return the entry of KEYS that a key of OpenTAD's means: by its whole name, else by a last word that tells
    enough."""
    words = [str(part) for part in key]
    # In order: more particular entries stand before those with a *.
    for entry in KEYS:
        pattern = entry.there.split(".")
        end = words[-1:] if len(pattern) == 1 else words
        if len(end) == len(pattern) and all(a in ("*", b) for a, b in zip(pattern, end, strict=True)):
            return entry
    # Only words with an underscore tell enough by themselves; the first entry of a word counts, so it is put in last.
    by_word = {entry.there.rpartition(".")[2]: entry for entry in reversed(KEYS)}
    return by_word.get(words[-1]) if "_" in words[-1] else None
