"""Cases of the modality experts' matrix products."""

from collections.abc import Callable, Iterator

import torch

from bench import eager
from bench.cases.base import Call, Case, Setting, bind
from streamchar import kernels as K
from streamchar.kernels._shared.compat import FP8

#: Contender that ``backend="auto"`` uses for an expert product where it is faster than ours.
CUBLAS = "cuBLAS path"


def expert_cases(setting: Setting) -> Iterator[Case]:
    """Yield both products of the modality experts, in the activations' dtype and in fp8."""
    preset, dit = setting.preset, setting.preset.dit
    tokens, video, dim = preset.noisy_tokens, preset.video_tokens, dit.dim
    audio = tokens - video
    dtypes = [setting.dtype] + ([FP8] if setting.device.type == "cuda" else [])

    def weights(draw: Callable[..., torch.Tensor], up: bool) -> list[torch.Tensor]:
        made = []
        for hidden in (dit.video_ffn, dit.audio_ffn):
            shape = (hidden, dim) if up else (dim, hidden)
            made += [draw(*shape) * shape[1] ** -0.5, draw(shape[0])]
        return made

    def tail(draw: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, ...]:
        index = torch.zeros((1, tokens), dtype=torch.int32, device=setting.device)
        index[:, video:] = 1
        return draw(1, tokens, dim), draw(1, 2, dim), index

    up_rivals, down_rivals = setting.peers(eager.expert_up), setting.peers(eager.expert_down)

    def build_up(seed: int) -> dict[str, Call]:
        draw = setting.random(seed)
        x, w = draw(1, tokens, dim), weights(draw, up=True)
        calls: dict[str, Call] = {
            "streamchar": lambda: K.expert_up(x, *w, num_video=video, backend=setting.ours)
        }
        if setting.device.type == "cuda":
            calls[CUBLAS] = lambda: K.expert_up(x, *w, num_video=video, backend="torch")
        return calls | {
            name: bind(function, x, tuple(w[:2]), tuple(w[2:]), video) for name, function in up_rivals.items()
        }

    def build_down(seed: int) -> dict[str, Call]:
        draw = setting.random(seed)
        h = draw(1, video, dit.video_ffn), draw(1, audio, dit.audio_ffn)
        w = weights(draw, up=False)
        residual, gate, index = tail(draw)
        # The model's modulation passes the gate in fp32.
        ours = (*h, *w, residual, gate.float(), index)
        calls: dict[str, Call] = {"streamchar": lambda: K.expert_down(*ours, backend=setting.ours)}
        if setting.device.type == "cuda":
            calls[CUBLAS] = lambda: K.expert_down(*ours, backend="torch")
        peer = (h, tuple(w[:2]), tuple(w[2:]), residual, gate, index)
        return calls | {name: bind(function, *peer) for name, function in down_rivals.items()}

    def quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return K.quantize_fp8(x if x.dim() == 3 else x[None])

    def weights_fp8(draw: Callable[..., torch.Tensor], up: bool) -> list[torch.Tensor]:
        made = []
        w_video, b_video, w_audio, b_audio = weights(draw, up)
        for w, b in ((w_video, b_video), (w_audio, b_audio)):
            values, scale = quantized(w)
            made += [values[0], scale[0], b]
        return made

    def build_up_fp8(seed: int) -> dict[str, Call]:
        draw = setting.random(seed)
        given = (*quantized(draw(1, tokens, dim)), *weights_fp8(draw, up=True))
        return {
            "streamchar": lambda: K.expert_up_fp8(*given, num_video=video, backend="triton"),
            CUBLAS: lambda: K.expert_up_fp8(*given, num_video=video, backend="torch"),
        }

    def build_down_fp8(seed: int) -> dict[str, Call]:
        draw = setting.random(seed)
        h = (*quantized(draw(1, video, dit.video_ffn)), *quantized(draw(1, audio, dit.audio_ffn)))
        given = (*h, *weights_fp8(draw, up=False), *tail(draw))
        return {
            "streamchar": lambda: K.expert_down_fp8(*given, backend="triton"),
            CUBLAS: lambda: K.expert_down_fp8(*given, backend="torch"),
        }

    for dtype in dtypes:
        size = torch.empty(0, dtype=dtype).element_size()
        name = "fp8 " if dtype == FP8 else ""
        weight_count = dim * (dit.video_ffn + dit.audio_ffn)
        hidden_count = video * dit.video_ffn + audio * dit.audio_ffn
        flop = 2.0 * dim * hidden_count
        for op, build in (
            ("expert_up", build_up_fp8 if dtype == FP8 else build_up),
            ("expert_down", build_down_fp8 if dtype == FP8 else build_down),
        ):
            up = op == "expert_up"
            streams = tokens * dim * size + hidden_count * setting.dtype.itemsize
            if not up:
                streams = hidden_count * size + 2 * tokens * dim * setting.dtype.itemsize
            yield Case(
                f"{op} {name}{video} + {audio} tokens",
                "experts",
                build,
                flop=flop,
                bytes=float(weight_count * size + streams),
                unit="fp8" if dtype == FP8 else "bf16",
                product={
                    "op": op,
                    "dtype": dtype,
                    "m_video": video,
                    "m_audio": audio,
                    "n": dit.video_ffn if up else dim,
                    "k": dim if up else dit.video_ffn,
                },
            )
