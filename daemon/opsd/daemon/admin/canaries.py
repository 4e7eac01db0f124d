"""Pending candidates and canaries as protocol messages."""

from __future__ import annotations

from opsd.daemon.adapters.approvals import Pending
from opsd.daemon.adapters.canary import CanaryWatch, plan_of
from opsd.daemon.adapters.canary_statistics import CanaryStatistics
from opsd.daemon.admin.convert import adapter_to_proto
from opsd.daemon.types.approval import Vote
from opsd.daemon.types.canary import Canary, CanaryEnd, Metric
from opsd.v1 import admin_pb2


def pending_to_proto(pending: Pending) -> admin_pb2.PendingCandidate:
    return admin_pb2.PendingCandidate(
        adapter=adapter_to_proto(pending.adapter, pending.report.verdict),
        explanation=pending.report.explanation,
        compared_with=pending.report.incumbent,
        proposer=pending.proposer,
        since_unix_s=pending.since_unix_s,
        expires_unix_s=pending.expires_unix_s,
        votes=[vote_to_proto(vote) for vote in pending.votes],
        approvals=sum(vote.override or not pending.doubt for vote in pending.votes),
        approvals_required=pending.required,
        doubt=pending.doubt,
    )


def vote_to_proto(vote: Vote) -> admin_pb2.Vote:
    return admin_pb2.Vote(
        actor=vote.actor,
        decision=vote.decision.value,
        override=vote.override,
        reason=vote.reason,
        verdict=vote.verdict,
        time_unix_s=vote.time_unix_s,
    )


def canary_to_proto(canary: Canary, watch: CanaryWatch) -> admin_pb2.Canary:
    """With what is known now while it runs, and what was last kept of one that ended."""
    message = admin_pb2.Canary(
        adapter=canary.adapter,
        end=canary.end.value,
        step=canary.step + 1,
        started_unix_s=canary.started_unix_s,
        step_started_unix_s=canary.step_started_unix_s,
        ended_unix_s=canary.ended_unix_s,
        reason=canary.reason,
    )
    statistics = watch.statistics
    is_watched = watch.canary is not None and watch.canary.id == canary.id
    if not is_watched or statistics is None:
        plan = plan_of(canary)
        if plan is None:
            return message
        statistics = CanaryStatistics.load(plan, canary.statistics_json, {})
    elif canary.end is CanaryEnd.RUNNING:
        message.reason = watch.decision().reason
    _add_statistics(message, statistics)
    return message


def _add_statistics(message: admin_pb2.Canary, statistics: CanaryStatistics) -> None:
    plan = statistics.plan
    message.steps.extend(plan.steps)
    message.mode = plan.mode
    message.shadow_share = plan.shadow_share
    message.alpha = plan.alpha
    message.step_requests = statistics.counts.requests
    message.step_pairs = statistics.counts.pairs
    message.step_outcomes = statistics.counts.outcomes
    message.e_value = statistics.e_value
    for metric in Metric:
        compared = statistics.comparisons[metric]
        message.metrics.add(
            name=metric.value,
            canary_n=compared.num_canary,
            incumbent_n=compared.num_incumbent,
            pairs_n=compared.num_pairs,
            canary_mean=compared.mean_canary,
            incumbent_mean=compared.mean_incumbent,
            pairs_mean=compared.mean_pair,
            harm_e_value=compared.harm.e_value,
            safe_e_value=compared.safe.e_value,
            margin=compared.margin,
            must_prove=metric.value in plan.must_prove,
            proven=metric in statistics.proven,
        )
