"""Distribution matching distillation (DMD): move samples towards the distribution of the data.

The gradient of the divergence between the generator's distribution and that of the data, both blurred by
noise, is the difference of their scores. The score at a noise level follows from the clean data that a
denoiser predicts there. The frozen teacher is the denoiser of the data; a copy of it, trained continuously on
the generator's samples, is the denoiser of the generator.

Source: DMD, arXiv 2311.18828, equations 5 to 8; several steps with samples made as at inference, DMD2,
arXiv 2405.14867, sections 4.4 and 4.5. The two time scales of DMD2 (section 4.2: five score updates per
generator update) are not used; :mod:`streamchar.train.stages.student` describes the update schedule.
"""

import torch.nn.functional as F
from torch import Tensor


def distribution_matching_loss(sample: Tensor, clean_real: Tensor, clean_made: Tensor) -> Tensor:
    """Return a loss whose gradient moves samples from the generator's distribution to that of the data.

    Only the gradient is meaningful. With respect to ``sample`` it is ``clean_made - clean_real``, divided in
    each row by the mean distance of ``sample`` to ``clean_real``, so that all noise levels have equal weight
    (DMD, equation 8), and by the number of elements.

    Args:
        sample: [batch, ...], clean samples of the generator, with their graph.
        clean_real: the teacher's clean prediction for the noised samples, the same shape.
        clean_made: the clean prediction of the generator's own denoiser, the same shape.
    """
    spread = (sample - clean_real).abs().flatten(1).mean(1).clamp(min=1e-4)
    gradient = (clean_made - clean_real) / spread.view(-1, *(1,) * (sample.dim() - 1))
    return 0.5 * F.mse_loss(sample, (sample - gradient).detach())


def guided(clean: Tensor, without: Tensor, guidance: float) -> Tensor:
    """Return ``without + guidance (clean - without)``: classifier-free guidance on clean predictions.

    Args:
        clean: [batch, ...], conditional prediction.
        without: prediction without the condition that guidance strengthens, the same shape.
        guidance: guidance scale; 1 returns ``clean``, above 1 samples follow the condition more closely than
            the data do.

    Source: classifier-free guidance, arXiv 2207.12598, equation 6.
    """
    return without + guidance * (clean - without)
