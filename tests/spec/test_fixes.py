"""What a message of a check proposes, set as it stands there, leaves nothing to be said."""

import re

import pytest

from adatad.spec import SpecError, load

TEXT = "data: {annotations: a.json, videos: v}\noptimizer: {backbone: {custom: [{name: adapter, lr: 1e-4}]}}\n"
TILE = "memory.policy=tile"
CASES = [
    ["data.window.size_grid=100"],
    ["data.window.size_grid=7", "data.window.frames_per_position=3", "data.window.stride_frames=3"],
    ["data.window.frames_per_position=3"],
    ["data.window.overlap=0.999999"],
    ["data.window.size_grid=1", "data.window.frames_per_position=16", "data.window.stride_frames=16"],
    ["data.window.crop_ratio=[0.9,0.5]"],
    ["data.window.kind=resize", "data.window.crop_ratio=[0.5,0.9]", "data.window.offset_frames=3"],
    ["data.classes=[a,b]", "data.class_count=3"],
    ["model.backbone.heads=5"],
    ["model.backbone.heads=999999"],
    ["model.backbone.tubelet=3"],
    ["model.backbone.tubelet=5", "model.backbone.clip_frames=12"],
    ["model.backbone.preset=vjepa2-large", "model.backbone.heads=256"],
    ["model.backbone.preset=vjepa2-large", "model.backbone.position_grid=14"],
    ["data.size_pixels=8"],
    ["model.backbone.adapter.blocks=[11,12]"],
    ["model.backbone.adapter.blocks=[12]"],
    ["model.backbone.adapter.blocks=[]"],
    ["model.backbone.adapter.blocks=[3,1,3]"],
    ["model.backbone.adapter.kernel=4"],
    ["model.backbone.adapter.ratio=0.001"],
    ["model.detector.heads=7"],
    ["model.detector.embed_kernel=4"],
    ["model.detector.max_length=1000"],
    # A multiple that suits the first level alone is no fix.
    ["model.detector.max_length=1000", "model.detector.attention_window=[-1,-1,4,7,9,19]"],
    ["model.detector.max_length=500", "model.detector.absolute_positions=true"],
    ["model.detector.split_width=[3]"],
    ["model.detector.regression_weight=0", "train.accumulation=2"],
    ["model.detector.regression_ranges=[[0,4],[8,4],[8,16],[16,32],[64,32],[64,10000]]"],
    ["model.detector.attention_window=3"],
    ["optimizer.layer_decay=0.8"],
    ["model.backbone.mode=frozen"],
    ["optimizer.backbone=null"],
    ["optimizer.backbone.custom=[]"],
    ["model.backbone.mode=full", "optimizer.backbone=null"],
    ["schedule.end_epoch=200"],
    ["schedule.epochs=2"],
    ["schedule.epochs=1", "schedule.end_epoch=60"],
    ["schedule.epochs=30", "schedule.warmup_epochs=31"],
    ["train.accumulation=4"],
    ["train.accumulation=4", "train.global_batch=6"],
    ["memory.tile_clips=2", "memory.segment_blocks=3", "memory.recompute=twice", "memory.host_limit_gib=3"],
    ["memory.order=tiles", "memory.residual_dtype=bf16", "memory.saved_inputs=host", "memory.halos=host",
     "memory.frames=host"],
    ["memory.weight_dtype=bf16"],
    ["memory.frozen_weights=stream"],
    [
        "memory.policy=[{first: 0, last: 5, policy: block}, {first: 6, last: 11, policy: tile}]",
        "memory.frames=host",
        "memory.frozen_weights=stream",
    ],
    [TILE, "memory.frozen_weights=stream", "memory.order=tiles"],
    [TILE, "memory.frozen_weights=stream", "parallel.engine=fsdp"],
    [TILE, "memory.frozen_weights=stream", "model.backbone.mode=full"],
    [TILE, "model.backbone.mode=side", "memory.saved_inputs=host", "memory.halos=host", "memory.saved_input_dtype=fp8"],
    ["memory.frozen_dtype=fp8", "memory.saved_input_dtype=fp8"],
    [TILE, "memory.frozen_dtype=int8", "memory.order=tiles"],
    [TILE, "memory.frozen_dtype=fp8", "model.backbone.mode=full"],
    [TILE, "memory.frozen_dtype=fp8", "parallel.engine=zero1"],
    ["memory.compile=true"],
    ["memory.compile=true", "parallel.engine=fsdp"],
    [TILE, "memory.compile=true", "parallel.engine=zero2"],
    ["parallel.deepspeed=x.json"],
    ["parallel.cpu_offload=true"],
    ["parallel.cpu_offload=true", "parallel.engine=zero3"],
    ["parallel.checkpoint_offload=true"],
    ["memory.optimizer_state=host", "parallel.engine=fsdp"],
    ["memory.moment_dtype=bf16", "parallel.engine=fairscale"],
    [TILE, "memory.order=tiles", "parallel.engine=fsdp"],
    ["parallel.clip=100"],
    ["parallel.clip=40", "model.backbone.adapter.dilation=20"],
    ["postprocess.nms.voting_threshold=0.7"],
    ["postprocess.nms.max_segments=0"],
    ["evaluate.tious=[]"],
    ["postprocess.classifier={kind: cuhk, file: x, pseudo_label: a, apply_softmax: true}"],
    ["postprocess.classifier={kind: pseudo, file: x, pseudo_label: a}"],
]  # fmt: skip


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_what_is_proposed_helps(tmp_path, overrides):
    path = tmp_path / "s.yaml"
    path.write_text(TEXT)
    with pytest.raises(SpecError) as caught:
        load(path, overrides, check_files=False)
    fixes = []
    for line in caught.value.problems:
        # The key itself may come after --set as well: where it was set.
        proposed = re.search(r"--set ((?:[\w.]+=[^\s;]+?,?(?: |$))+)", line.partition(": ")[2].partition(": ")[2])
        assert proposed, line
        fixes += proposed[1].replace(", ", " ").split()
    load(path, [*overrides, *fixes], check_files=False)


@pytest.mark.parametrize(
    ("text", "override", "fix"),
    [
        ("schedule: {epochs: 1, warmup_epochs: 0}", "schedule.end_epoch=3", "schedule.epochs=3"),
        ("schedule: {end_epoch: 3, warmup_epochs: 0}", "schedule.epochs=2", "schedule.end_epoch=null"),
        ("schedule: {epochs: 2, warmup_epochs: 1}", "schedule.warmup_epochs=7", "schedule.epochs=8"),
        ("", "train.accumulation=3", "train.global_batch=3"),
        ("", "model.detector.heads=7", "model.detector.width=518"),
        ("", "model.detector.heads=4000", "model.detector.heads=512"),
        ("", "model.detector.width=514", "model.detector.heads=2"),
        ("train: {accumulation: 2}", "train.global_batch=3", "train.accumulation=1"),
        ("", "memory.tile_clips=2", "memory.policy=tile"),
        ("", "memory.weight_dtype=bf16", "memory.policy=tile"),
        ("model: {backbone: {mode: side}}", "memory.saved_inputs=host", "memory.saved_inputs=device"),
        ("memory: {policy: tile, frozen_weights: stream}", "memory.order=tiles", "memory.frozen_weights=device"),
        ("memory: {policy: tile, order: tiles}", "parallel.engine=fsdp", "memory.order=auto"),
        ("parallel: {engine: fsdp}", "memory.optimizer_state=host", "parallel.engine=ddp"),
        ("", "parallel.cpu_offload=true", "parallel.engine=fsdp"),
        ("parallel: {cpu_offload: true, engine: fsdp}", "parallel.engine=ddp", "parallel.cpu_offload=false"),
        ("", "parallel.checkpoint_offload=true", "parallel.engine=fairscale memory.policy=block"),
        ("", "parallel.deepspeed=x.json", "parallel.engine=zero2"),
        ("parallel: {engine: zero1}", "train.recheck_every=5", "parallel.engine=fsdp"),
        ("", "postprocess.nms.voting_threshold=0.7", "postprocess.nms.multiclass=false"),
        ("train: {accumulation: 2}", "model.detector.regression_weight=0", "train.accumulation=1"),
        ("", "optimizer.layer_decay=0.8", "model.backbone.mode=full"),
        ("model: {backbone: {mode: frozen}}", "optimizer.backbone.lr=1e-4", "model.backbone.mode=adapter"),
        ("", "postprocess.classifier={kind: pseudo, pseudo_label: a}", "model.detector.class_agnostic=true"),
    ],
)  # fmt: skip
def test_a_cure_does_not_undo_what_has_just_been_set(tmp_path, text, override, fix):
    path = tmp_path / "s.yaml"
    path.write_text(TEXT + text)
    with pytest.raises(SpecError) as caught:
        load(path, [override], check_files=False)
    [line] = caught.value.problems
    assert line.endswith(f"; --set {fix}")
    load(path, [override, *fix.split()], check_files=False)
