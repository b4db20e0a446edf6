import torch
from ipvae.data.batches import epoch_order


def test_every_sample_once_an_epoch() -> None:
    for epoch in range(3):
        order = epoch_order(23, 1, epoch)
        assert order.dtype == torch.int64
        assert order.sort().values.tolist() == list(range(23))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        torch.manual_seed(seed * 7 + epoch)  # the global generator does not matter
        return tuple(epoch_order(23, seed, epoch).tolist())

    orders = {(seed, epoch): order(seed, epoch) for seed in (-1, 0, 1) for epoch in range(3)}
    assert len(set(orders.values())) == 9
    assert order(1, 2) == orders[1, 2]


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    epoch_order(23, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)
