"""Any torch module, any score: a small net that learns two moons by its accuracy alone.

    python examples/any_module.py

Accuracy is a step function: its gradient is zero wherever there is one. The part that matters is
``learn``. Expected, seeds 0 to 4, on 2,000 fresh points: 0.984, 0.974, 0.979, 0.981, 0.978, six
seconds each on one core. eps must be large enough that some predictions flip: with 0.1 two of the
five seeds walk to where all points get one label, every pair ties, and stay at 0.5.
"""

import argparse

import torch
from torch import Tensor, nn

from zoobj.optim import ZOSGD


def moons(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points on two interleaved half circles, with noise; the upper one and the lower one."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.pi * torch.rand(count, generator=generator)
    lower = torch.arange(count) % 2
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    turned = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1)
    points = torch.where(lower.unsqueeze(1) == 1, turned, circle)
    return points + 0.1 * torch.randn(count, 2, generator=generator), lower


def learn(seed: int, steps: int) -> float:
    """Tune on accuracy; the accuracy on fresh points."""
    (x, y), (fresh_x, fresh_y) = moons(500, seed=1), moons(2000, seed=2)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    generator = torch.Generator().manual_seed(seed)
    for param in model.parameters():
        nn.init.normal_(param, std=0.5, generator=generator)
    opt = ZOSGD(model.parameters(), lr=0.05, eps=0.3, directions=4, maximize=True, seed=seed)
    schedule = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.1, total_iters=steps)
    for _ in range(steps):
        opt.step(lambda: (model(x).argmax(1) == y).float().mean())
        schedule.step()
    return float((model(fresh_x).argmax(1) == fresh_y).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args()
    steps = 5 if options.smoke else options.steps
    print(f"accuracy on fresh points: {learn(options.seed, steps):.3f}")


if __name__ == "__main__":
    main()
