"""Small data sets in the published layout and in COCO's caption format, made on the spot."""

import json

import h5py
import numpy as np

SUBJECTS, VERBS, PLACES = ("cat", "dog", "boy"), ("runs", "sits"), ("snow", "grass", "water")


def write_coco(directory, *, images=12, width=6, seed=0, npy=False):
    """COCO-format captions and features of a train and a val split; the arguments of ``prepare``.

    Captions tell what the features hold: the first 3 subjects, then 2 verbs, then the first place.
    """
    rng = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    paths = {}
    for number, split in enumerate(("train", "val")):
        ids = (1000 * (number + 1) + rng.permutation(images)).tolist()
        annotations, features = [], np.zeros((images, width), np.float32)
        for i, image_id in enumerate(ids):
            subject, verb = rng.integers(3), rng.integers(2)
            features[i, [subject, 3 + verb]] = 1
            for text in (
                f"A {SUBJECTS[subject]} {VERBS[verb]}.",
                f"The {SUBJECTS[subject]} {VERBS[verb]} in the {PLACES[i % 3]}!",
            ):
                annotations.append({"id": len(annotations), "image_id": image_id, "caption": text})
        content = {
            "images": [{"id": image_id, "file_name": f"{image_id}.jpg"} for image_id in ids],
            "annotations": annotations,
        }
        captions = directory / f"{split}.json"
        captions.write_text(json.dumps(content))
        shuffled = rng.permutation(images)
        stored_ids, stored = np.array(ids)[shuffled], features[shuffled].astype(np.float16)
        if npy:
            path = directory / f"{split}.npy"
            np.save(path, stored)
            np.save(directory / f"{split}_image_ids.npy", stored_ids)
        else:
            path = directory / f"{split}.h5"
            with h5py.File(path, "w") as file:
                file.create_dataset("features", data=stored, chunks=(5, width), compression="gzip")
                file["image_ids"] = stored_ids
        paths |= {f"{split}_captions": captions, f"{split}_features": path}
    return paths


def edit_json(path, change):
    """Load a JSON file, let ``change`` edit it, and write it back."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def write_h5(path, **datasets):
    """An HDF5 file with these data sets."""
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[name] = value
