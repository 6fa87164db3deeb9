"""Explain made-up detections of ActivityNet's validation videos: `explain_activitynet.py ANNOTATIONS FOLDER`."""

import json
import sys
import time
from pathlib import Path

import numpy as np

from adatad.evaluation.explain_files import explain_files
from adatad.files import read_json

ANNOTATIONS, FOLDER = map(Path, sys.argv[1:])
PER_VIDEO, TIOUS = 100, np.linspace(0.5, 0.95, 10).round(2).tolist()


def detections(database):
    """Detections near the sample's instances, and at random places, for every video of the subset."""
    sample = read_json(ANNOTATIONS / "anet_sample_detection_prediction.json.gz")["results"]
    labels = sorted({item["label"] for items in sample.values() for item in items})
    random, results = np.random.default_rng(0), {}
    for video, entry in database.items():
        if entry["subset"] != "validation":
            continue
        results[video] = items = []
        right = sample.get(video, [])
        for number in range(PER_VIDEO):
            item = {"label": labels[random.integers(len(labels))], "score": random.random()}
            ends = random.uniform(0, entry["duration"], 2)
            if right and number < PER_VIDEO // 3:
                near = right[number % len(right)]
                ends = np.array(near["segment"]) + random.normal(0, 0.1 * np.ptp(near["segment"]), 2)
                item["label"] = near["label"] if random.random() < 0.7 else item["label"]
            items.append({**item, "segment": np.sort(ends).tolist()})
    return {"results": results}


truth = ANNOTATIONS / "anet_1_3.json.gz"
made = FOLDER / "made.json"
made.write_text(json.dumps(detections(read_json(truth)["database"])))
begun = time.process_time()
found = explain_files(truth, made, "validation", TIOUS)
print(json.dumps({"detections": found["detections"], "cpu_seconds": time.process_time() - begun}))
