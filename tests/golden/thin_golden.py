"""Makes the golden files of this folder from the full ones.

    PYTHONPATH=tests python -m golden.thin_golden FOLDER_WITH_THE_FULL_FILES

Four things happen to a tensor, by its name:
1. pictures become PNG files;
2. tensors that must be reproduced bit for bit become digests;
3. large prefill tensors keep every STRIDE-th position, with the first and last of the text and of each crop;
4. the logits of the flash-attention class are dropped: its tokens stay.
Everything else is copied.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from golden.golden import FOLDER, Thinning, digest, digests_path, picture_path, tensors_path

# Coprime to the grids' sides (CLIP 35 tokens; InternViT 16 tokens, 32 patches): every column is visited.
STRIDE = 9

PICTURES = r"image/(?P<picture>\w+)/source"
DIGESTED = r"image/\w+/(resized_u8|tiles_u8|pixel_values|pixel_values_tile0|pixel_values_f16_stride7)"
DROPPED = r".*/flash/greedy_logits"
THINNED = {
    r"img/(inputs_embeds|final_norm|layer\d+/(x1|x2|mixed))": (1, "img/kept_positions"),
    r"img/layer\d+/(key|value)_cache": (2, "img/kept_positions"),
    r"image/(?P<picture>\w+)/vision_features": (1, "image/{picture}/kept_features"),
    r"image/(?P<picture>\w+)/projected": (1, "image/{picture}/kept_tokens"),
    r"image/(?P<picture>\w+)/vit_last_hidden_tile0": (1, "image/{picture}/kept_patches"),
}


def thinning(name: str) -> Thinning | None:
    for pattern, (axis, positions) in THINNED.items():
        if match := re.fullmatch(pattern, name):
            return Thinning(axis, positions.format(**match.groupdict()))
    return None


def strided(length: int) -> set[int]:
    return {*range(0, length, STRIDE), length - 1}


def kept_prompt_positions(is_image_token: np.ndarray, tokens_per_crop: int) -> set[int]:
    """Every text position and, of the image tokens, every STRIDE-th and each crop's first and last."""
    text, image = np.flatnonzero(~is_image_token), np.flatnonzero(is_image_token)
    crop_borders = {*image[::tokens_per_crop], *image[tokens_per_crop - 1 :: tokens_per_crop]}
    return strided(len(is_image_token)) | {*text} | crop_borders


def read_full(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The full file's tensors and metadata.

    CLIP features come as every 5th token under a name that says so; here they are `vision_features` with 5 n as index.
    """
    with safe_open(path, "np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (a handle, not a dict)
    step = json.loads(metadata["spec"]).get("feature_stride", 1)
    suffix = f"_stride{step}"
    for name in [name for name in tensors if name.endswith(f"/vision_features{suffix}")]:
        rows = sorted(strided(tensors[name].shape[1]))
        tensors[name.replace(f"vision_features{suffix}", "kept_features")] = np.array(rows) * step
        tensors[name.removesuffix(suffix)] = tensors.pop(name)[:, rows]
    return tensors, metadata


def thin(arch: str, source: Path) -> None:
    full, metadata = read_full(source / f"golden_{arch}.safetensors")
    tokens_per_crop = full["image/a/projected"].shape[1]
    kept: dict[str, np.ndarray] = {}
    digests, thinnings = {}, {}
    for name, tensor in full.items():
        if match := re.fullmatch(PICTURES, name):
            Image.fromarray(tensor).save(picture_path(arch, match["picture"]), optimize=True)
        elif re.fullmatch(DIGESTED, name):
            digests[name] = digest(tensor)
        elif re.fullmatch(DROPPED, name):
            continue
        elif rule := thinning(name):
            thinnings[name] = rule
            if rule.positions in full:  # thinned by read_full
                kept[name] = tensor
                continue
            if rule.positions == "img/kept_positions":
                positions = kept_prompt_positions(full["img/im_mask"][0].astype(bool), tokens_per_crop)
            else:
                positions = strided(tensor.shape[rule.axis])
            kept[rule.positions] = np.array(sorted(positions), np.int64)
            kept[name] = np.take(tensor, kept[rule.positions], rule.axis)
        else:
            kept[name] = tensor
    metadata["thinnings"] = json.dumps(thinnings, sort_keys=True)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in kept.items()}, tensors_path(arch), metadata)
    digests_path(arch).write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the golden files of this folder from the full ones.")
    parser.add_argument("source", type=Path, help="folder of the full golden_*.safetensors and prompts.json")
    source = parser.parse_args().source
    for arch in ("internlm2", "phi3"):
        thin(arch, source)
    shutil.copyfile(source / "prompts.json", FOLDER / "prompts.json")


if __name__ == "__main__":
    main()
