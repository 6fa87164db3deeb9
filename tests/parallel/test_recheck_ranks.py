"""Two ranks that compare a step: the one whose bit flipped is named by both, and both leave."""

from ranks import run_ranks


def steps_with_a_flip(spec_file: str, guilty: int) -> str:
    """Return how a rank's training ends, when one rank's first gradient has a flipped bit in step 1's second pass."""
    import torch
    from steps import Run

    from adatad.parallel.processes import start_processes
    from adatad.training.determinism import DataCorruptionError

    with start_processes() as processes:
        run = Run(spec_file, ["train.recheck_every=1", "parallel.engine=ddp"], processes)
        run.train(1)
        engine, real = run.parts.engine, run.parts.engine.clear_gradients
        parameter = dict(run.parts.model.named_parameters())[run.parts.trained[0]]

        def flipped(gradient: torch.Tensor) -> torch.Tensor:
            gradient = gradient.clone()
            gradient.view(-1).view(torch.int32)[0] ^= 1 << 20
            return gradient

        def clear_gradients() -> None:
            real()
            if processes.rank == guilty:
                parameter.register_hook(flipped)

        engine.clear_gradients = clear_gradients
        try:
            run.train(1)
        except DataCorruptionError as error:
            return str(error)
    return "trained on"


def test_both_ranks_name_the_one_that_erred(shared_spec):
    first, second = run_ranks(2, steps_with_a_flip, shared_spec, 1)
    assert first == second
    assert "step 1 was computed twice and differs on rank 1, host " in first
    assert "rank 0" not in first
    assert "take this GPU" in first
