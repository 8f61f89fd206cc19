"""Algorithm 1 on one page: one iteration of contrastive adversarial learning.

Two orders of the same losses. ``paper_step`` is the paper's: three successive updates, each with its own graph.
``joint_step`` runs the encoder once and makes one update with the sum of L_adv and L_AV: cheaper, but a different
algorithm, which must be reported as such.

With several processes each holds a share of the batch. Networks see the share; their outputs are gathered, so that
grouping, margin and losses see the whole batch, and gradients are summed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from ..choices import Precision, WeakBatchNorm
from ..functional.checks import at_least_float32
from ..functional.concordance import affect_loss
from ..grouping import Grouper
from ..messages import problem
from ..training.optimisation import autocast, backward_and_step
from ..training.world import World
from .critics import STRONG, WEAK, Critic
from .nets import EmotionNet
from .terms import Term


@dataclass
class Optimizers:
    """One optimiser for each update of Algorithm 1.

    Attributes:
        critic: of θ_c, line 6; None without a critic.
        adversarial: for θ_e, line 7. The paper's second Adam; or the same object as ``regression``, whose moments then
            mix both gradients, as in the released code. None without a critic; ``joint_step`` does not use it.
        regression: for θ_e and θ_r, line 8.
    """

    critic: Optimizer | None
    adversarial: Optimizer | None
    regression: Optimizer


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """Options of an iteration.

    Attributes:
        adversarial_weight: weight of L_adv. If line 7 has its own Adam (order ``"paper"``), it changes only rounding,
            because Adam's steps do not depend on the scale of a loss.
        correlation_weight: ε of L_AV, the weight of PCC and CCC.
        weak_batch_norm: the statistics by which line 7 of ``paper_step`` normalises weak images, if the encoder has
            batch norm. ``"weak"``: those of the weak images, as the algorithm literally says; they also update the
            running statistics, which evaluation then uses for all images; a single weak image, which has no statistics,
            is normalised as with ``"running"``. ``"whole"``: those of the whole batch, which
            was encoded for line 5 with the same weights and need not be encoded again. ``"running"``: the running
            statistics, without updating them.
        precision: precision of the networks; losses are computed in float32.
        clip_norm: maximum norm of an update's gradients; None for no limit.
    """

    adversarial_weight: float = 1.0
    correlation_weight: float = 0.5
    weak_batch_norm: WeakBatchNorm = "weak"
    precision: Precision = "float32"
    clip_norm: float | None = None


@dataclass
class Iteration:
    """The networks, with optimisers and options for their training.

    Attributes:
        net: f_e and f_r.
        critic: f_c; None for plain regression.
        grouper: finds strong and weak groups from the labels of the whole batch.
        optimizers: see :class:`Optimizers`.
        options: see :class:`StepOptions`.
        world: the processes.
        scaler: gradient scaler for float16.
        term: what line 8 adds to its loss; None for nothing.
    """

    net: EmotionNet
    critic: Critic | None
    grouper: Grouper
    optimizers: Optimizers
    options: StepOptions
    world: World
    scaler: GradScaler | None = None
    term: Term | None = None

    @property
    def ids(self) -> bool:
        """Whether an iteration needs to know who is in each picture."""
        needs = (self.term is not None and self.term.ids, self.critic is not None and self.critic.ids)
        return any(needs) or self.net.person_norm is not None

    def paper_step(
        self, images: Tensor, labels: Tensor, people: Tensor | None = None, *, adversarial: bool = True
    ) -> dict[str, Tensor]:
        """One iteration of Algorithm 1.

        Args:
            images: this process's share of the batch, normalised, shape ``(b, 3, H, W)``.
            labels: their (valence, arousal), shape ``(b, 2)``.
            people: number of each one's person, from 0, shape ``(b,)``; needed where :attr:`ids` says so.
            adversarial: False skips lines 3 to 7, which gives a plain regression.

        Returns:
            The losses and the share of strong samples, by name: 0-dim, without graph.
        """
        net, critic, world, options = self.net, self.critic, self.world, self.options
        labels, people = world.gather(labels), self._everybody(people)  # (B, 2) and (B,), of the whole batch
        total = len(labels)
        losses: dict[str, Tensor] = {}

        if critic is not None and adversarial:
            # Line 3: strong and weak emotions of this batch.
            groups = self.grouper(labels)  # (B,)
            strong, weak = groups == STRONG, groups == WEAK

            # Lines 4 to 6: the critic learns to part them; the encoder is not touched.
            with self._autocast(), torch.set_grad_enabled(options.weak_batch_norm == "whole"):  # the graph of line 7
                features = net.encoder(images)  # (b, F)
            with self._autocast():
                z = world.gather(critic(features.detach()), total)  # (B, d)
            critic_loss = critic.loss(z, groups, people)
            self._update(self.optimizers.critic, critic_loss)

            # Line 7: the encoder makes weak emotions look strong to the critic, which is frozen.
            if bool(weak.any()):
                with frozen(critic):
                    with self._autocast():
                        z_strong = world.gather(critic(features.detach()), total)[strong]
                        z_weak = self._weak_outputs(images, features, weak, critic)
                    adversarial_loss = critic.objective.adversarial_loss(z_weak, z_strong)
                    self._update(self.optimizers.adversarial, options.adversarial_weight * adversarial_loss)
                losses["adversarial"] = adversarial_loss.detach()
            losses |= {"critic": critic_loss.detach(), "strong": strong.float().mean()}

        # Line 8: encoder and regressor learn valence and arousal.
        with self._autocast():
            features = net.encoder(images)
        regression_loss, named = self._regression(features, labels, people)
        self._update(self.optimizers.regression, regression_loss)
        return losses | named

    def joint_step(
        self, images: Tensor, labels: Tensor, people: Tensor | None = None, *, adversarial: bool = True
    ) -> dict[str, Tensor]:
        """The same losses with one pass through the encoder: L_AV + w · L_adv in one update of θ_e and θ_r.

        Arguments and result are as in :meth:`paper_step`. The critic is updated first, as there. The difference: the
        encoder is updated once per iteration, and the weight w decides the influence of L_adv.
        """
        net, critic, world, options = self.net, self.critic, self.world, self.options
        labels, people = world.gather(labels), self._everybody(people)  # (B, 2) and (B,)
        total = len(labels)
        losses: dict[str, Tensor] = {}

        with self._autocast():
            features = net.encoder(images)  # (b, F)
        regression_loss, named = self._regression(features, labels, people)
        loss = regression_loss

        if critic is not None and adversarial:
            groups = self.grouper(labels)  # (B,)
            strong, weak = groups == STRONG, groups == WEAK
            with self._autocast():
                z = world.gather(critic(features.detach()), total)  # (B, d)
            critic_loss = critic.loss(z, groups, people)
            self._update(self.optimizers.critic, critic_loss)

            with frozen(critic), self._autocast():
                z = world.gather(critic(features), total)
            adversarial_loss = critic.objective.adversarial_loss(z[weak], z[strong].detach())
            loss = regression_loss + options.adversarial_weight * adversarial_loss
            losses |= {
                "adversarial": adversarial_loss.detach(),
                "critic": critic_loss.detach(),
                "strong": strong.float().mean(),
            }

        self._update(self.optimizers.regression, loss)
        return losses | named

    def _everybody(self, people: Tensor | None) -> Tensor | None:
        """The people of the whole batch; None where nothing needs them."""
        if not self.ids:
            return None
        if people is None:
            remedy = "pass the number of each row's person, from 0"
            raise ValueError(problem("people", "given for a step that uses them", "None", remedy))
        return self.world.gather(people)

    def _regression(self, features: Tensor, labels: Tensor, people: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """L_AV of the whole batch and the term's loss, and both by name, from this process's features ``(b, F)``."""
        net, world, term, total = self.net, self.world, self.term, len(labels)
        norm = net.person_norm
        with self._autocast(), contextlib.nullcontext() if norm is None else norm.known(people):
            predictions = world.gather(net.regressor(features), total)  # (B, 2)
            outputs = None if term is None else world.gather(term(features), total)
        loss = affect_loss(labels, at_least_float32(predictions), correlation_weight=self.options.correlation_weight)
        named = {"regression": loss.detach()}
        if term is not None:
            assert outputs is not None
            who = labels.new_zeros(total, dtype=torch.int64) if people is None else people
            with contextlib.nullcontext() if norm is None else norm.known(None):
                added = term.loss(outputs, labels, who, net.regressor)
            named["term"] = added.detach()
            loss = loss + added
        return loss, named

    def _weak_outputs(self, images: Tensor, features: Tensor, weak: Tensor, critic: Critic) -> Tensor:
        """Z of the weak samples of the whole batch, ``(N_w, d)``, with a graph down to the encoder."""
        if self.options.weak_batch_norm == "whole":
            return self.world.gather(critic(features), len(weak))[weak]
        here = weak[self.world.shard(len(weak))]  # (b,)
        if self.options.weak_batch_norm == "running" or int(weak.sum()) == 1:  # one image has no statistics
            with stored_statistics(self.net.encoder):
                return self.world.gather(critic(self.net.encoder(images[here])))
        return self.world.gather(critic(self.net.encoder(images[here])))

    def _update(self, optimizer: Optimizer | None, loss: Tensor) -> None:
        """Zero the gradients, backward, step: only for this optimiser's parameters."""
        assert optimizer is not None
        backward_and_step(
            loss,
            optimizer,
            parameters_before_gather=[p for group in optimizer.param_groups for p in group["params"]],
            world=self.world,
            scaler=self.scaler,
            clip_norm=self.options.clip_norm,
        )

    def _autocast(self) -> torch.autocast:
        return autocast(self.world.device, self.options.precision)


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Gradients pass through a module, but its parameters get none; the state is restored afterwards."""
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def stored_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norm uses its running statistics without updating them; the state is restored afterwards."""
    wanted = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for layer in wanted:
        layer.eval()
    try:
        yield
    finally:
        for layer in wanted:
            layer.train()
