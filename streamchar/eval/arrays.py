"""Array types that the scores share."""

import numpy as np
import numpy.typing as npt

#: [samples] fp32 in [-1, 1], at the sample rate of :data:`~streamchar.config.CLOCK` (24 kHz).
Audio = npt.NDArray[np.float32]
#: [frames, height, width, 3] uint8 RGB.
Frames = npt.NDArray[np.uint8]
#: fp64 numbers, such as one per frame or one per minute.
Values = npt.NDArray[np.float64]
