"""``torch.ops.cond_detr.conditional_attention`` and its gradient: schemas, fakes, autograd, vmap, implementations.

Autograd is defined twice, by the same two functions. ``register_autograd`` is for direct calls of the operator and for
opcheck. It does not work under torch.func's transforms (grad, vmap, jvp), which need an ``autograd.Function``; that is
what :func:`~cond_detr_kernels.conditional_attention` calls.
"""

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from cond_detr_kernels.conditional_attention import closed_form
from cond_detr_kernels.conditional_attention.problem import Problem, mask_width

HAS_TRITON = importlib.util.find_spec("triton") is not None

# tensors first, as Problem has them
_PROBLEM = (
    "Tensor q_content, Tensor q_spatial, Tensor k_content, Tensor k_spatial, Tensor value, "
    "Tensor? key_mask, Tensor? seed, float dropout_p, float scale"
)
_library = torch.library.Library("cond_detr", "FRAGMENT")
_library.define(f"conditional_attention({_PROBLEM}, bool? deterministic) -> (Tensor, Tensor)")
_library.define(
    f"conditional_attention_backward(Tensor grad_out, {_PROBLEM}, Tensor out, Tensor lse, bool? deterministic) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define("prepare_key_mask(Tensor key_padding_mask) -> Tensor")
_forward_op = torch.ops.cond_detr.conditional_attention.default
_backward_op = torch.ops.cond_detr.conditional_attention_backward.default


@torch.library.register_fake("cond_detr::prepare_key_mask", lib=_library)
def _prepare_fake(mask: Tensor) -> Tensor:
    return mask.new_empty(mask.shape[0], mask_width(mask.shape[1]), dtype=torch.float32)


@torch.library.register_fake("cond_detr::conditional_attention", lib=_library)
def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    problem = Problem(*arguments[:-1])
    queries, value_dim = problem.sizes[2], problem.dims[2]
    return problem.new_like_heads(queries, value_dim, problem.value.dtype), problem.new_rows()


@torch.library.register_fake("cond_detr::conditional_attention_backward", lib=_library)
def _backward_fake(_grad_out: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(_new_gradients(Problem(*arguments[:-3])))


def _new_gradients(problem: Problem) -> list[Tensor]:
    _, _, queries, keys = problem.sizes
    content, spatial, value = problem.dims
    sizes = [(queries, content), (queries, spatial), (keys, content), (keys, spatial), (keys, value)]
    return [problem.new_like_heads(length, dim, problem.value.dtype) for length, dim in sizes]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    out, lse = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(*inputs[:7], out, lse)
    ctx.numbers = inputs[7:]


def _backward(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, out, lse = ctx.saved_tensors
    if grad_out is None:
        return (None,) * 10
    dropout_p, scale, deterministic = ctx.numbers
    # torch.compile does not trace a Function inside another's backward, and needs no second derivative
    gradient = _backward_op if torch.compiler.is_compiling() else AttentionGradient.apply
    gradients = gradient(grad_out, *inputs, dropout_p, scale, out, lse, deterministic)
    return (*gradients, None, None, None, None, None)


torch.library.register_autograd(
    "cond_detr::conditional_attention", _backward, setup_context=_setup_context, lib=_library
)


def _no_second_derivatives(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    raise NotImplementedError("conditional_attention has no second derivatives; take conditional_attention_reference")


torch.library.register_autograd("cond_detr::conditional_attention_backward", _no_second_derivatives, lib=_library)


def _fold_batch(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[list[Any], int]:
    """Folds the mapped dim of all arguments into the batch, so that dropout differs between the mapped examples.

    Returns:
        The arguments, and the size of the mapped dim.
    """
    size = info.batch_size
    folded = []
    for argument, dim in zip(arguments, in_dims, strict=True):
        if not isinstance(argument, Tensor):
            folded.append(argument)
        elif argument.dim() - (dim is not None) == 1:  # the seed
            if info.randomness == "same":
                raise RuntimeError('conditional_attention: dropout cannot have vmap\'s randomness="same"')
            folded.append(argument if dim is None else argument.select(dim, 0))
        else:
            moved = argument.expand(size, *argument.shape) if dim is None else argument.movedim(dim, 0)
            folded.append(moved.flatten(0, 1))
    return folded, size


def _vmap(op: Any) -> Any:
    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        folded, size = _fold_batch(info, in_dims, *arguments)
        outputs = tuple(output.unflatten(0, (size, -1)) for output in op(*folded))
        return outputs, (0,) * len(outputs)

    return rule


torch.library.register_vmap(
    "cond_detr::prepare_key_mask", _vmap(torch.ops.cond_detr.prepare_key_mask.default), lib=_library
)
torch.library.register_vmap("cond_detr::conditional_attention", _vmap(_forward_op), lib=_library)
torch.library.register_vmap("cond_detr::conditional_attention_backward", _vmap(_backward_op), lib=_library)


class DifferentiableAttention(torch.autograd.Function):
    """The operator as an ``autograd.Function``, which torch.func's transforms need."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        """Calls the operator."""
        return _forward_op(*arguments)

    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)
    vmap = staticmethod(_vmap(lambda *arguments: DifferentiableAttention.apply(*arguments)))


class AttentionGradient(torch.autograd.Function):
    """The operator's gradient for torch.func, which also differentiates it; there is no second derivative."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        """Calls the operator of the gradient."""
        return _backward_op(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Saves nothing."""

    backward = staticmethod(_no_second_derivatives)
    vmap = staticmethod(_vmap(lambda *arguments: AttentionGradient.apply(*arguments)))


@torch.library.impl("cond_detr::prepare_key_mask", ("CPU", "CUDA"), lib=_library)
def _run_prepare(mask: Tensor) -> Tensor:
    if not (_has_triton(mask) and mask.numel()):
        return closed_form.prepare_mask(mask)
    from cond_detr_kernels.conditional_attention.masking import prepare_launch

    launch, prepared = prepare_launch(mask)
    _run([launch], mask)
    return prepared


@torch.library.impl("cond_detr::conditional_attention", ("CPU", "CUDA"), lib=_library)
def _run_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    problem = Problem(*arguments[:-1])
    if not _has_kernels(problem):
        return closed_form.forward(problem)
    from cond_detr_kernels.conditional_attention.target import target_of

    return run_forward(problem, *target_of(problem))


@torch.library.impl("cond_detr::conditional_attention_backward", ("CPU", "CUDA"), lib=_library)
def _run_backward(grad_out: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *inputs, out, lse, deterministic = arguments
    problem = Problem(*inputs)
    if not _has_kernels(problem):
        return tuple(closed_form.backward(problem, out, lse, grad_out))
    from cond_detr_kernels.conditional_attention.target import target_of

    tuning = target_of(problem).tuning
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled() or not tuning.one_pass
    return run_backward(problem, out, lse, grad_out, tuning, deterministic)


def run_forward(problem: Problem, tuning: Any, multiprocessors: int) -> tuple[Tensor, Tensor]:
    """Runs the forward kernels.

    Args:
        problem: the arguments of the call.
        tuning: kernel configurations, a :class:`~cond_detr_kernels.conditional_attention.tuning.Tuning`.
        multiprocessors: number of streaming multiprocessors.

    Returns:
        The output (B, H, N, Dv), and the base-2 log-sum-exp of the scores (B, H, padded N).
    """
    from cond_detr_kernels.conditional_attention.forward import forward_launches

    launches, out, lse = forward_launches(problem, tuning, multiprocessors)
    _run(launches, problem.value)
    return out, lse


def run_backward(
    problem: Problem, out: Tensor, lse: Tensor, grad_out: Tensor, tuning: Any, deterministic: bool
) -> tuple[Tensor, ...]:
    """Runs the backward kernels.

    Args:
        problem: the arguments of the call.
        out: output of :func:`run_forward`.
        lse: log-sum-exp of :func:`run_forward`.
        grad_out: (B, H, N, Dv) gradient of the output.
        tuning: kernel configurations, a :class:`~cond_detr_kernels.conditional_attention.tuning.Tuning`.
        deterministic: whether to use the deterministic kernels instead of one pass with atomic additions.

    Returns:
        The gradients of q_content, q_spatial, k_content, k_spatial and value.
    """
    from cond_detr_kernels.conditional_attention.backward import backward_launches

    launches, grad_queries, grad_keys = backward_launches(problem, out, lse, grad_out, tuning, deterministic)
    _run(launches, problem.value)
    if not deterministic:  # sums in fp32, with room for whole tiles
        sums = grad_queries
        dtype = problem.value.dtype
        grad_queries = [problem.new_like_heads(problem.sizes[2], total.shape[3], dtype) for total in sums]
        torch._foreach_copy_(grad_queries, sums)  # one launch for both
    return (*grad_queries, *grad_keys)


def _has_kernels(problem: Problem) -> bool:
    """Whether Triton runs on the problem's device, and no size is 0."""
    return _has_triton(problem.value) and all(problem.sizes)


def _has_triton(tensor: Tensor) -> bool:
    """Whether Triton runs on a tensor's device, natively or by its interpreter."""
    return HAS_TRITON and (tensor.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")


def _run(launches: list[Any], where: Tensor) -> None:
    # Triton launches on the current device
    with torch.cuda.device_of(where):
        for launch in launches:
            launch.run()
