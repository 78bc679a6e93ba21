"""Train a small encoder of faces for age, on images that the game then does not use.

python experiments/distribution_inference/encoder.py FOLDER OUT

FOLDER holds UTKFace's images. A third of them, equal files together, train a small ResNet that tells the age, which
OUT/encoder then holds; OUT/faces links to the others. So its features know faces and no image of the game.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import ResNetConfig, ResNetModel

from fairpriv.classifiers.nets.encoder import ImageBody

SIZE, EPOCHS, BATCH, LR = 64, 3, 64, 1e-3
NAMED = re.compile(r"(\d+)_[01]_[0-4]_\d+ ?\.?jpg(\.chip\.jpg)?")  # as conf/dataset/utkface.yaml


def main(folder: Path, out: Path) -> None:
    """Deal the images, train, and save."""
    torch.manual_seed(0)
    digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.jpg"))}
    own = {path for path, digest in digests.items() if int(digest[:8], 16) % 3 == 0}
    (out / "faces").mkdir(parents=True, exist_ok=True)
    for path in digests.keys() - own:
        (out / "faces" / path.name).unlink(missing_ok=True)  # of a run that was stopped
        (out / "faces" / path.name).symlink_to(path.resolve())
    ages, images = [], []
    for path in sorted(own, key=digests.get):  # in no order of age
        if told := NAMED.fullmatch(path.name):
            ages.append(float(told[1]))
            images.append(np.asarray(Image.open(path).convert("RGB").resize((SIZE, SIZE))).transpose(2, 0, 1))
    y, X = torch.tensor(ages) / 50, torch.from_numpy(np.stack(images))
    sizes = {"embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [2, 2, 2, 2]}
    encoder = ResNetModel(ResNetConfig(layer_type="basic", **sizes))
    body = ImageBody(encoder, [0.5] * 3, [0.5] * 3, augment=True)
    head = nn.Linear(body.width, 1)
    optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()], lr=LR)
    held = len(X) // 10
    for epoch in range(EPOCHS):
        body.train()
        for rows in torch.randperm(len(X) - held).split(BATCH):
            optimizer.zero_grad()
            (head(body(X[rows])).squeeze(1) - y[rows]).abs().mean().backward()
            optimizer.step()
        body.eval()
        with torch.no_grad():
            told_ages = torch.cat([head(body(part)).squeeze(1) for part in X[-held:].split(256)])
        error, middle = ((guess - y[-held:]).abs().mean() * 50 for guess in (told_ages, y[:-held].median()))
        print(f"epoch {epoch + 1} of {EPOCHS}: {error:.1f} years off; who says the median: {middle:.1f}", flush=True)
    encoder.save_pretrained(out / "encoder")
    normalised = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (out / "encoder" / "preprocessor_config.json").write_text(json.dumps(normalised))
    print(f"{len(X)} images for the encoder, {len(digests) - len(own)} left in {out / 'faces'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
