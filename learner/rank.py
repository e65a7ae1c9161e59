"""One learner rank: its share of a step's groups, forward by forward, to one optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from accord.backbones.adapters import role
from accord.backbones.base import Backbone
from accord.backbones.surgery import audio_to_video, gradient_surgery
from accord.config.job import JobSpec
from accord.errors import NonFiniteError
from accord.types import GroupData, Modality, Role, ScoredGroup
from learner.algorithms.base import Algorithm, Credit, LossTerms, View
from learner.collectives import Ranks
from learner.engine import AdapterState, Engine
from learner.gradient_norms import GradientNorms
from learner.views.base import MicroBatch, Share, ShareView
from learner.views.forward import ForwardView
from learner.views.transition import TransitionView

VIEWS: dict[View, type[ShareView]] = {"forward": ForwardView, "transition": TransitionView}
"""How the groups of a step become micro-batches, by the name that an algorithm gives."""
Report = Callable[[int, int], None]
"""Called with (done, total) micro-batches."""


class Rank:
    """Consumes scored groups and their credit; changes the engine's policy and old roles; returns metrics.

    Groups go to ranks by prompt index, contiguously. The gradient is that of the mean loss over all samples and noise
    levels of the step, so the number of ranks and the micro-batch size change nothing but rounding.
    """

    def __init__(
        self,
        job: JobSpec,
        backbone: Backbone,
        engine: Engine,
        algorithm: Algorithm[Any],
        ranks: Ranks,
        device: str = "cpu",
    ) -> None:
        self.job, self.backbone, self.engine, self.algorithm = job, backbone, engine, algorithm
        self.ranks = ranks
        self.view = VIEWS[algorithm.view](job, algorithm, backbone.sigmas(job.sampling.num_steps), device)
        self.modalities: tuple[Modality, ...] = tuple(backbone.modalities)
        self.attentions = audio_to_video(engine.module)  # found once: walking the modules costs milliseconds
        self.norms = GradientNorms(engine, ranks, self.attentions) if job.optimizer.gradient_norms else None

    def update(
        self,
        step: int,
        groups: Sequence[ScoredGroup],
        credit: Credit,
        fetch: Callable[[Any], GroupData],
        report: Report = lambda _done, _total: None,
        sampler: AdapterState | None = None,
    ) -> dict[str, float]:
        """Train on the step's groups, then let the old policy follow, and the reference where a guard says so.

        Returns flat metrics, equal on every rank.

        `sampler` is the adapter that sampled the groups where it is not the engine's `old`: the loss reads it as `old`,
        and what follows the policy afterwards is the engine's own.

        Raises NonFiniteError, before the weights change, when a loss is NaN or infinite, and when a gradient is, before
        anything is published.
        """
        share = Share.of(step, groups, credit, self.ranks.share(len(groups)), fetch)
        items, size = self.view.items(share), self.job.optimizer.micro_batch
        starts = range(0, len(items), size)
        sums: dict[str, Tensor] = {}
        with self._measured_from(sampler), self._shaped():
            for done, start in enumerate(starts, start=1):
                terms = self._evaluate(self.view.micro_batch(share, items[start : start + size]))
                self.engine.backward(terms.loss_B.sum() / len(items))
                for name, value_B in terms.metrics_B.items():
                    sums[name] = sums.get(name, 0) + value_B.double().sum()
                report(done, len(starts))
        metrics = self._reduced(sums, len(items))
        _require_finite(step, metrics)
        grad_norm = self.engine.step()
        _require_finite(step, {"grad_norm": grad_norm})
        if self.norms is not None:
            metrics |= self.norms.metrics()
        eta = self.algorithm.eta(step)
        self.engine.blend_old(eta)
        metrics |= self._reset_reference(step, metrics)
        learning_rate = self.job.optimizer.learning_rate
        return metrics | {"grad_norm": grad_norm, "learning_rate": learning_rate, "old_policy/eta": eta}

    def _reset_reference(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """The guard of `ReferenceResetSpec`; `reference/reset` says whether it did. {} without it."""
        guard = self.job.guards.reference_reset
        if guard is None:
            return {}
        due = guard.due(step, max(metrics[f"loss/reference/{modality}"] for modality in self.modalities))
        if due:
            self.engine.reset_reference()
        return {"reference/reset": float(due)}

    @contextmanager
    def _measured_from(self, sampler: AdapterState | None) -> Iterator[None]:
        """Have `sampler` in the place of `old` where the loss reads that role.

        After an error the engine is not put right: it ends the attempt, and the peers may not be there to gather.
        """
        if sampler is None or "old" not in self.algorithm.anchors:
            yield
            return
        latest = self.engine.adapter_state("old")
        self.engine.load_adapters({"old": sampler})
        yield
        self.engine.load_adapters({"old": latest})

    @contextmanager
    def _shaped(self) -> Iterator[None]:
        """Gradient surgery and its probes around the policy, which is the role at rest.

        Spans the backward too, where checkpointed blocks run again.
        """
        surgery, norms = self.algorithm.surgery, self.norms
        with (
            gradient_surgery(self.attentions, surgery) if surgery else nullcontext(),
            norms.watching() if norms else nullcontext(),
        ):
            yield

    def _evaluate(self, micro: MicroBatch) -> LossTerms:
        """Anchors without gradient, then the policy, on the very same micro-batch."""
        predictions: dict[Role, Mapping[Modality, Tensor]] = {}
        for anchor in self.algorithm.anchors:
            with torch.no_grad(), role(self.engine.module, anchor):
                predictions[anchor] = self.engine.velocity(micro.latents, micro.sigmas, micro.conditions)
        predictions["policy"] = self.engine.velocity(micro.latents, micro.sigmas, micro.conditions)
        if micro.anchored and "ref" in predictions:
            predictions["ref"] = _released(micro.anchored, predictions["policy"], predictions["ref"])
        return self.algorithm.loss(micro.batch, predictions)

    def _reduced(self, sums: Mapping[str, Tensor], count: int) -> dict[str, float]:
        """Means over all samples of all ranks: one collective and one copy to the host per step."""
        names = sorted(sums)
        totals = torch.stack([sums[name] for name in names] + [torch.tensor(float(count)).to(sums[names[0]])])
        *values, samples = self.ranks.sum(totals).tolist()
        return {name: value / samples for name, value in zip(names, values, strict=True)}


def _released(
    anchored: Mapping[Modality, Tensor], policy: Mapping[Modality, Tensor], ref: Mapping[Modality, Tensor]
) -> dict[Modality, Tensor]:
    """The reference [B, T, C] where a sample is held to it; elsewhere the policy itself, from which no distance is."""
    return {
        modality: torch.where(anchored[modality].view(-1, 1, 1), value, policy[modality].detach())
        if modality in anchored
        else value
        for modality, value in ref.items()
    }


def _require_finite(step: int, metrics: Mapping[str, float]) -> None:
    """Raise NonFiniteError naming the first value that is not finite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NonFiniteError(
                f"step {step}: {name} is {value}; the attempt stops before these weights are published. "
                "Lower optimizer/learning_rate, or look at the samples of this step"
            )
