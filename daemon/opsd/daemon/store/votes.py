"""People's votes on candidates; the one that decides takes effect in its own transaction."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from sqlalchemy import Connection, RowMapping, func, insert, select

from opsd.daemon.errors import StateError
from opsd.daemon.store import serving, tables
from opsd.daemon.store.api import Change, Voted
from opsd.daemon.store.area import Area, write_audit
from opsd.daemon.store.serving import Why
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.approval import Vote, VoteDecision, VotePolicy, actor_key

_votes = tables.votes


class VoteArea(Area):
    """Implements ``VoteStore``."""

    def vote_to_approve(
        self,
        name: str,
        *,
        actor: str,
        reason: str,
        override: bool,
        verdict: str,
        policy: VotePolicy,
        expected_epoch: int,
        canary_plan: tuple[float, str] | None,
    ) -> Voted:
        def work(connection: Connection) -> Voted:
            # First of all the lock that every decision takes: whoever comes second sees the first.
            before = serving.expect(connection, expected_epoch)
            adapter = serving.resolve(connection, name)
            now = self._clock()
            _require_open(adapter, policy, now)
            earlier = _open_ballot(connection, adapter.name)
            _require_entitled(earlier, actor, policy)
            vote = Vote(
                adapter=adapter.name,
                ballot=_ballot(connection, adapter.name),
                actor=actor,
                decision=VoteDecision.APPROVE,
                override=override,
                reason=reason,
                verdict=verdict,
                time_unix_s=now,
                deciding=False,
            )
            counted = [v for v in (*earlier, vote) if v.override or not policy.needs_override]
            vote = replace(vote, deciding=len(counted) >= policy.required)
            _add(connection, vote)
            if not vote.deciding:
                audit_id = _audit(connection, vote, len(counted), policy.required)
                return Voted(Change(before, adapter, audit_id), len(counted), policy.required)
            why = Why(actor, reason, now, {"approvals": [_shown(v) for v in counted]})
            if canary_plan is None:
                change = serving.promote(connection, adapter.name, epoch=expected_epoch, why=why)
            else:
                share, plan_json = canary_plan
                change = serving.start_canary(
                    connection,
                    adapter.name,
                    share=share,
                    epoch=expected_epoch,
                    plan_json=plan_json,
                    why=why,
                )
            return Voted(change, len(counted), policy.required)

        return self._database.write(work, name="promote" if canary_plan is None else "canary")

    def vote_to_reject(self, name: str, *, actor: str, reason: str, verdict: str) -> Change:
        return self._end(name, VoteDecision.REJECT, actor, reason, verdict, 0.0)

    def expire_candidate(
        self, name: str, *, actor: str, reason: str, verdict: str, expires_unix_s: float
    ) -> Change:
        return self._end(name, VoteDecision.EXPIRE, actor, reason, verdict, expires_unix_s)

    def list_votes(self, adapter: str) -> list[Vote]:
        query = select(_votes).where(_votes.c.adapter == adapter).order_by(_votes.c.seq)
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [_vote(row) for row in rows]

    def open_votes(self, adapter: str) -> list[Vote]:
        return self._database.read(lambda connection: _open_ballot(connection, adapter))

    def _end(
        self,
        name: str,
        decision: VoteDecision,
        actor: str,
        reason: str,
        verdict: str,
        not_before_unix_s: float,
    ) -> Change:
        serving.require_why(actor, reason)

        def work(connection: Connection) -> Change:
            serving.current(connection, for_update=True)
            adapter = serving.resolve(connection, name)
            now = self._clock()
            if now < not_before_unix_s:
                raise StateError(
                    f"{adapter.name} expires in {not_before_unix_s - now:.0f} s, not now"
                )
            change = serving.reject(connection, adapter.name, Why(actor, reason, now))
            _require_entitled(_open_ballot(connection, adapter.name), actor, VotePolicy(1))
            vote = Vote(
                adapter=adapter.name,
                ballot=_ballot(connection, adapter.name),
                actor=actor,
                decision=decision,
                override=False,
                reason=reason,
                verdict=verdict,
                time_unix_s=now,
                deciding=True,
            )
            _add(connection, vote)
            return change

        return self._database.write(work, name="reject")


def _require_open(adapter: Adapter, policy: VotePolicy, now_unix_s: float) -> None:
    # A canary is promoted by its last step, not by another vote.
    if adapter.state is AdapterState.CANARY or adapter.state not in serving.PROMOTABLE:
        raise StateError(
            f"{adapter.name} is {adapter.state.value}: the decision about it has been made"
        )
    is_pending = adapter.state is AdapterState.CANDIDATE
    if is_pending and policy.expires_unix_s and now_unix_s >= policy.expires_unix_s:
        raise StateError(
            f"{adapter.name} expired: nobody decided within promotion.approval_expires_s; trigger "
            "a new run"
        )


def _require_entitled(earlier: list[Vote], actor: str, policy: VotePolicy) -> None:
    key = actor_key(actor)
    for vote in earlier:
        if actor_key(vote.actor) == key:
            raise StateError(
                f"{actor} has voted on {vote.adapter} already ({vote.decision.value}: "
                f"{vote.reason!r}): a vote is final; another person must decide"
            )
    if policy.required > 1 and key == actor_key(policy.proposer):
        raise StateError(
            f"{actor} triggered the run and cannot approve its adapter: "
            f"promotion.approvals_required is {policy.required}, two other people must"
        )


def _ballot(connection: Connection, adapter: str) -> int:
    ended = select(func.count()).where(_votes.c.adapter == adapter, _votes.c.deciding)
    return int(connection.execute(ended).scalar_one())


def _open_ballot(connection: Connection, adapter: str) -> list[Vote]:
    query = (
        select(_votes)
        .where(_votes.c.adapter == adapter, _votes.c.ballot == _ballot(connection, adapter))
        .order_by(_votes.c.seq)
    )
    return [_vote(row) for row in connection.execute(query).mappings()]


def _add(connection: Connection, vote: Vote) -> None:
    values = asdict(vote) | {"decision": vote.decision.value, "actor_key": actor_key(vote.actor)}
    connection.execute(insert(_votes).values(**values))


def _audit(connection: Connection, vote: Vote, counted: int, required: int) -> int:
    detail = {"counted": counted, "required": required, **_shown(vote)}
    return write_audit(
        connection,
        vote.time_unix_s,
        actor=vote.actor,
        action="adapter.vote",
        subject=vote.adapter,
        reason=vote.reason,
        detail_json=json.dumps(detail, sort_keys=True),
    )


def _shown(vote: Vote) -> dict[str, object]:
    return {
        "actor": vote.actor,
        "override": vote.override,
        "reason": vote.reason,
        "time_unix_s": vote.time_unix_s,
        "verdict": vote.verdict,
    }


def _vote(row: RowMapping) -> Vote:
    values = {key: value for key, value in row.items() if key not in ("seq", "actor_key")}
    return Vote(**{**values, "decision": VoteDecision(row["decision"])})
