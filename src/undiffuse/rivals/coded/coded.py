"""The rival that draws a code token by token and decodes it at once, as VQ-VAE does (van den Oord et al. 2017).

The code is a finite scalar quantisation (Mentzer et al. 2024), which needs no codebook, commitment loss or restarts.
No features of other networks judge the reconstruction.
"""

import torch
from torch import Tensor, nn

from undiffuse.randomness import Draw
from undiffuse.rivals.coded.autoencoder import FOLD, Autoencoder
from undiffuse.rivals.coded.critic import Critic
from undiffuse.rivals.coded.prior import Prior
from undiffuse.rivals.rival import Rival


class Coded(Rival):
    """An autoencoder, and a prior of its codes: pictures (C, H, W), H and W multiples of 4.

    Both are trained in every step, the prior on the codes of the moment. It has no likelihood of pictures.

    Args:
        shape: (C, H, W).
        classes: 0 for none; only the prior is told the class.
        levels: of the numbers of a code.
        widths, depths: of the autoencoder.
        width, layers: of the prior.
        critic: channels of a critic of patches, for sharper reconstructions; 0 for none.
        persuasion: the weight of its judgement beside the error of the reconstruction.

    Raises UsageError for sides that are no multiples of 4.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int = 0,
        *,
        levels: tuple[int, ...] = (8, 5, 5, 5),
        widths: tuple[int, int] = (64, 96),
        depths: tuple[int, int] = (2, 2),
        width: int = 128,
        layers: int = 4,
        critic: int = 0,
        persuasion: float = 0.1,
    ):
        super().__init__()
        self.classes = classes
        self.phases = ("critic", "code", "prior") if critic else ("code", "prior")
        self.critic, self.persuasion = Critic(shape[0], critic) if critic else None, persuasion
        self.size = (shape[1] // FOLD, shape[2] // FOLD)
        length = self.size[0] * self.size[1]
        self.code = Autoencoder(shape, levels, widths, depths)
        self.prior = Prior(self.code.quantiser, length, classes, width, layers)
        self.evaluations = length + 1

    def part(self, phase: str) -> nn.Module:
        """The autoencoder ("code"), the prior ("prior") or the critic ("critic")."""
        return self.get_submodule(phase)

    def matrices(self) -> list[Tensor]:
        """The weights for Muon, of the autoencoder and the prior; the critic's are AdamW's."""
        return self.code.matrices() + self.prior.matrices()

    def losses(self, phase: str, x0: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        """One for each picture, (B,); nothing is drawn.

        Of "code", the mean of |d| + d^2, d being the errors of the reconstruction, and what the critic says; of
        "prior", -ln p per token, in nats; of "critic", those of `Critic.losses`.
        """
        if phase == "prior":
            return self.prior.nats(self.code.codes(x0).flatten(1), labels) / self.prior.length
        if phase == "critic" and self.critic is not None:
            with torch.no_grad():
                made = self.code(x0)
            return self.critic.losses(x0, made)
        made = self.code(x0)
        error = made - x0
        losses = (error.abs() + error.square()).mean((1, 2, 3))
        return losses if self.critic is None else losses + self.persuasion * self.critic.doubts(x0, made)

    @torch.no_grad()
    def generate(self, labels: Tensor | None, draw: Draw, count: int) -> Tensor:
        """Pictures float32 (count, C, H, W) in [-1, 1]: one evaluation for each token, and one to decode.

        Raises ValueError if labels are missing or unexpected.
        """
        with torch.autocast(self.prior.position.device.type, enabled=False):
            codes = self.prior.generate(labels, draw, count).unflatten(1, self.size)
            return self.code.decode(self.code.quantiser.values(codes))
