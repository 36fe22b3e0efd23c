"""Objectives that learn an order: harder than another, and the gate that fuses two maps."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from tiny import batch, build_of, maps
from unveil.modeling.masked_model import mean_loss
from unveil.modeling.objectives import Gate, Ranking
from unveil.recipes import cmtmae


class Guess(nn.Module):
    def __init__(self, values: Tensor):
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self, output: Any, queries: Any) -> Tensor:
        return self.values


class Erring:
    """Stands for an objective whose errors are known."""

    weight, decoder = 1.0, "pixels"

    def __init__(self, error: Tensor, known: Tensor):
        self.error, self.known = error, known

    def token_losses(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        return self.error, self.known


class PretrainConfig:
    def __init__(self) -> None:
        self.queries = {"pixels": None}


class TestRanking:
    def test_it_is_the_mean_over_pairs(self):
        error, guess = torch.rand(3, 5), torch.randn(3, 5)
        known = torch.ones(3, 5)
        known[1, 2] = 0
        known[2] = 0
        total, count = Ranking("r", [Erring(error, known)], Guess(guess))(PretrainConfig(), None)  # type: ignore[list-item]
        sums = []
        for b in range(3):
            pairs = [
                -(guess[b, i] - guess[b, j]).sigmoid().log()
                for i, j in itertools.permutations(range(5), 2)
                if error[b, i] > error[b, j] and known[b, i] and known[b, j]
            ]
            sums.append(sum(pairs) / len(pairs) if pairs else torch.tensor(0.0))
        torch.testing.assert_close(total, sum(sums))
        assert count == 2

    def test_it_learns_an_order(self):
        error, guess = torch.rand(4, 8), Guess(torch.zeros(4, 8))
        ranking = Ranking("r", [Erring(error, torch.ones(4, 8))], guess)  # type: ignore[list-item]
        optimizer = torch.optim.Adam(guess.parameters(), 0.3)
        for _ in range(50):
            optimizer.zero_grad()
            ranking(PretrainConfig(), None)[0].backward()
            optimizer.step()
        assert torch.equal(guess.values.argsort(dim=1), error.argsort(dim=1))


class TestGate:
    def test_it_begins_near_the_linear_fusion_and_stays_between_the_two(self):
        teacher, student = maps()
        fused = Gate()(teacher, student, 0.3)
        assert ((fused - teacher) * (fused - student) <= 0).all()
        order = torch.randperm(12)
        torch.manual_seed(1)
        gate = Gate()
        torch.testing.assert_close(
            gate(teacher, student, 0.3)[:, order], gate(teacher[:, order], student[:, order], 0.3)
        )

    def test_its_weights_move_by_its_own_objective_and_the_mask_gives_them_none(self):
        model, on = build_of(cmtmae, teacher="random", fusion="learned"), batch(8)
        gate = {n: p for n, p in model.named_parameters() if "gate" in n}
        assert len(gate) == 4
        own = model.objectives[-1].name
        losses = model(on)
        mean_loss({name: loss for name, loss in losses.items() if name != own}).backward()
        assert all(p.grad is None for p in gate.values())
        model.zero_grad()
        mean_loss({own: model(on)[own]}).backward()
        moved = {n for n, p in model.named_parameters() if p.grad is not None}
        assert moved == set(gate), "and its objective moves nothing else"
        before = {n: p.clone() for n, p in gate.items()}
        torch.optim.SGD(gate.values(), lr=1.0).step()
        assert all(not torch.equal(p, before[n]) for n, p in gate.items())

    def test_it_learns_to_look_where_errors_are(self):
        """The errors follow the student's attention, so the gate comes to trust the student."""
        teacher, student = maps(count=64)
        gate = Gate()

        class Fused(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gate = gate

            def forward(self, output: Any, queries: Any) -> Tensor:
                return self.gate(teacher, student, 0.3).log()

        ranking = Ranking("gate", [Erring(student, torch.ones(64, 12))], Fused())  # type: ignore[list-item]
        optimizer = torch.optim.Adam(gate.parameters(), 0.02)

        def distance() -> float:
            return (gate(teacher, student, 0.3) - student).abs().sum().item()

        before = distance()
        for _ in range(60):
            optimizer.zero_grad()
            (ranking(PretrainConfig(), None)[0] / 64).backward()
            optimizer.step()
        assert distance() < 0.5 * before
