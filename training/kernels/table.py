"""Every operation with its implementations: the one list that the door chooses from and torch learns the operators from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from . import activation, adamw, gate, gemm, norm, rope, rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """`torch`: the reference, on any device. `meta`: shapes and types alone. `library`: what torch binds of NVIDIA's
    libraries. `cuda`: a kernel of sources/, given a launcher first."""

    schema: str
    torch: Callable
    meta: Callable
    cuda: Callable | None = None
    library: Callable | None = None
    least_capability: tuple[int, int] = (7, 5)  # of the library's
    least_for_cuda: tuple[int, int] = (7, 5)

    @property
    def implementations(self) -> tuple[str, ...]:
        return tuple(name for name in ("cuda", "library", "torch") if getattr(self, name) is not None)


_LORA = dict(
    schema="(Tensor a, Tensor b, Tensor row_scale, Tensor? col_scale, Tensor? bias, Tensor? t, Tensor? u, float alpha, int group, ScalarType dtype) -> Tensor",
    torch=gemm.lora_torch, meta=gemm.lora_meta, cuda=gemm.lora_cuda,
)

OPERATIONS: dict[str, Operation] = {
    "norm_modulate": Operation(
        schema="(Tensor x, Tensor? weight, Tensor? bias, Tensor? shift, Tensor? scale, float eps, bool centred, float plus=1.0) -> (Tensor, Tensor, Tensor)",
        torch=norm.forward_torch, meta=norm.forward_meta, cuda=norm.forward_cuda,
    ),
    "norm_modulate_codes": Operation(
        schema="(Tensor x, Tensor? weight, Tensor? bias, Tensor? shift, Tensor? scale, float eps, bool centred, bool fp8, int group, float plus=1.0) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        torch=norm.codes_torch, meta=norm.codes_meta, cuda=norm.codes_cuda,
    ),
    "norm_modulate_backward": Operation(
        schema="(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? scale, bool centred, float plus=1.0) -> Tensor",
        torch=norm.backward_torch, meta=norm.backward_meta, cuda=norm.backward_cuda,
    ),
    "column_sums": Operation(
        schema="(Tensor a, Tensor? b, Tensor? mean, Tensor? rstd, Tensor? weight, Tensor? bias) -> (Tensor, Tensor)",
        torch=norm.sums_torch, meta=norm.sums_meta, cuda=norm.sums_cuda,
    ),
    "gated_residual": Operation(
        schema="(Tensor? x, Tensor y, Tensor gate) -> Tensor", torch=gate.reference, meta=gate.meta, cuda=gate.cuda,
    ),
    "gelu8": Operation(
        schema="(Tensor x, bool tanh) -> (Tensor, Tensor, Tensor)",
        torch=activation.gelu_torch, meta=activation.gelu_meta, cuda=activation.gelu_cuda,
    ),
    "gelu8_backward": Operation(
        schema="(Tensor dy, Tensor codes, Tensor scales, bool tanh) -> Tensor",
        torch=activation.gelu_backward_torch, meta=activation.gelu_backward_meta, cuda=activation.gelu_backward_cuda,
    ),
    "swiglu8": Operation(
        schema="(Tensor a, Tensor b) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        torch=activation.swiglu_torch, meta=activation.swiglu_meta, cuda=activation.swiglu_cuda,
    ),
    "swiglu8_backward": Operation(
        schema="(Tensor dy, Tensor a_codes, Tensor a_scales, Tensor b_codes, Tensor b_scales) -> (Tensor, Tensor)",
        torch=activation.swiglu_backward_torch, meta=activation.swiglu_backward_meta, cuda=activation.swiglu_backward_cuda,
    ),
    "geglu8": Operation(
        schema="(Tensor both) -> (Tensor, Tensor, Tensor)", torch=activation.geglu_torch, meta=activation.geglu_meta, cuda=activation.geglu_cuda,
    ),
    "geglu8_backward": Operation(
        schema="(Tensor dy, Tensor codes, Tensor scales) -> Tensor",
        torch=activation.geglu_backward_torch, meta=activation.geglu_backward_meta, cuda=activation.geglu_backward_cuda,
    ),
    "rms_rope_": Operation(
        schema="(Tensor(a!) x, Tensor weight, Tensor table, float eps, bool whole_row) -> Tensor",
        torch=rope.forward_torch, meta=rope.forward_meta, cuda=rope.forward_cuda,
    ),
    "rms_rope_backward": Operation(
        schema="(Tensor dz, Tensor z, Tensor weight, Tensor table, Tensor rstd, bool whole_row) -> Tensor",
        torch=rope.backward_torch, meta=rope.backward_meta, cuda=rope.backward_cuda,
    ),
    "quantise_rows": Operation(
        schema="(Tensor x, Tensor? fold, bool fp8, int group) -> (Tensor, Tensor)",
        torch=rows.quantise_torch, meta=rows.quantise_meta, cuda=rows.quantise_cuda,
    ),
    "rescale_rows": Operation(
        schema="(Tensor values, Tensor? row_scale, Tensor? col_scale, Tensor? bias, int group, ScalarType dtype) -> Tensor",
        torch=rows.rescale_torch, meta=rows.rescale_meta, cuda=rows.rescale_cuda,
    ),
    "transpose_bytes": Operation(
        schema="(Tensor x) -> Tensor", torch=rows.transpose_torch, meta=rows.transpose_meta, cuda=rows.transpose_cuda,
    ),
    "product_int8": Operation(
        schema="(Tensor a, Tensor b) -> Tensor", torch=rows.product_int8_torch, meta=rows.product_int8_meta, library=rows.product_int8_library,
    ),
    "product_fp8": Operation(
        schema="(Tensor a, Tensor b, Tensor a_scale, Tensor b_scale, ScalarType dtype) -> Tensor",
        torch=rows.product_fp8_torch, meta=rows.product_fp8_meta, library=rows.product_fp8_library, least_capability=(9, 0),
    ),
    "product_lora_int8": Operation(**_LORA, least_for_cuda=(8, 0)),
    "product_lora_fp8": Operation(**_LORA, least_for_cuda=(8, 9)),
    "adamw_": Operation(
        schema="(Tensor(a!) p, Tensor g, Tensor(b!) m, Tensor(c!) v, Tensor knobs, Tensor? clip) -> ()",
        torch=adamw.step_torch, meta=adamw.step_meta, cuda=adamw.step_cuda, library=adamw.step_library,
    ),
    "adamw8_": Operation(
        schema="(Tensor(a!) p, Tensor g, Tensor(b!) m, Tensor(c!) m_scale, Tensor(d!) v, Tensor(e!) v_scale, Tensor(f!) compensation, "
        "Tensor m_grid, Tensor v_grid, Tensor knobs, Tensor? clip, Tensor keys) -> ()",
        torch=adamw.step8_torch, meta=adamw.step8_meta, cuda=adamw.step8_cuda,
    ),
}
