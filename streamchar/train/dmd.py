"""Distribution matching distillation: pull samples from where the generator's are common to where data are.

The gradient of the divergence between the generator's distribution and the data's, both blurred by noise, is
the difference of their scores. A score at a noise level is known from the clean data that a denoiser predicts
there: the frozen teacher for the data, and a copy that is trained all along on the generator's own samples.

Source: DMD, arXiv 2311.18828, equations 5 to 8; several steps, their samples made as at run time, DMD2,
arXiv 2405.14867, sections 4.4 and 4.5. Its two time scales (section 4.2: five updates of the score for each
of the generator) are not taken over; :mod:`.student` says what is done.
"""

import torch.nn.functional as F
from torch import Tensor


def distribution_matching_loss(sample: Tensor, clean_real: Tensor, clean_made: Tensor) -> Tensor:
    """Return a loss whose gradient moves samples from the generator's distribution towards the data's.

    Its value means nothing; its gradient with respect to ``sample`` is ``clean_made - clean_real``, divided
    for each row by the mean distance of ``sample`` to ``clean_real`` and by the number of elements, so that
    all noise levels count alike (DMD, equation 8).

    Args:
        sample: [batch, ...], clean data made by the generator, with its graph.
        clean_real: the same shape, what the teacher predicts from the sample with noise added.
        clean_made: likewise, what the denoiser of the generator's samples predicts.
    """
    spread = (sample - clean_real).abs().flatten(1).mean(1).clamp(min=1e-4)
    gradient = (clean_made - clean_real) / spread.view(-1, *(1,) * (sample.dim() - 1))
    return 0.5 * F.mse_loss(sample, (sample - gradient).detach())


def guided(clean: Tensor, without: Tensor, guidance: float) -> Tensor:
    """Return ``without + guidance (clean - without)``, classifier-free guidance on clean predictions.

    Args:
        clean: [batch, ...], what a denoiser predicts from all that it is given.
        without: the same shape, what it predicts without the part that samples are to agree with better.
        guidance: 1 gives ``clean``; above, samples agree better than those of the data do.

    Source: classifier-free guidance, arXiv 2207.12598, equation 6.
    """
    return without + guidance * (clean - without)
