"""How good speech sounds, as people would judge it: DNSMOS P.835 (Reddy et al. 2022), a network of PyPI speechmos.

The package itself is not imported: it would need librosa, which this model does not.
"""

from collections.abc import Callable

import numpy as np

from undiffuse.errors import UsageError
from undiffuse.metrics.intervals import Measure, mean
from undiffuse.metrics.sounds.packages import RATE, at_16_khz, file_of, missing

MODEL = "dnsmos_models", "sig_bak_ovr.onnx"
PIECE = 144160  # samples that the model hears: 9.01 s
GAP = RATE // 5
TITLES = {"sig": "DNSMOS, speech", "bak": "DNSMOS, background", "ovrl": "DNSMOS, overall"}
POLYNOMIALS = {
    "sig": (-0.08397278, 1.22083953, 0.0052439),
    "bak": (-0.13166888, 1.60915514, -0.39604546),
    "ovrl": (-0.06766283, 1.11546468, 0.04602535),
}
"""From the network's outputs to opinion scores, from 1 to 5: fitted by the model's authors, in speechmos/dnsmos.py."""


def pieces(rows: np.ndarray) -> np.ndarray:
    """int16 (N, L) at 16 kHz -> float32 (P, 144160) in [-1, 1]: rows one after the other with .2 s of silence between.

    Rows that do not fill a last piece are left out, and if there is none, they are repeated to fill one.
    """
    spaced = np.pad(rows, ((0, 0), (0, GAP)))
    each = -(-PIECE // spaced.shape[1])  # rows in a piece, the last of which may be cut
    if len(rows) < each:
        spaced = np.tile(spaced, (-(-each // len(rows)), 1))
    count = len(spaced) // each
    return spaced[: count * each].reshape(count, -1)[:, :PIECE].astype(np.float32) / 32768


def dnsmos(rows: np.ndarray, rate: int, tick: Callable[[int], None] | None = None) -> dict[str, Measure]:
    """The mean opinion scores of int16 rows (N, L) at `rate` Hz: "sig", "bak" and "ovrl", from 1 to 5.

    The model hears 9 seconds at once, so rows are joined (`pieces`), and intervals resample the pieces. Scores mean
    little for sounds that are not speech. `tick` gets the number of further rows done. Raises UsageError if speechmos
    or onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise missing("onnxruntime") from None
    if not len(rows):
        raise UsageError("no sounds to judge")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # the same sums on every machine
    session = onnxruntime.InferenceSession(str(file_of("speechmos", *MODEL)), options, ["CPUExecutionProvider"])
    joined, raw = pieces(at_16_khz(rows, rate)), []
    for piece in joined:
        raw.append(session.run(None, {"input_1": piece[None]})[0][0])
        if tick:
            tick(len(rows) // len(joined))
    outputs = np.stack(raw).astype(np.float64).T
    return {key: mean(np.polyval(POLYNOMIALS[key], x)) for key, x in zip(POLYNOMIALS, outputs, strict=True)}
