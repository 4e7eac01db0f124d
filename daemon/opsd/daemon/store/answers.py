"""Answers to held-out items, kept for later gates."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update

from opsd.daemon.store import tables
from opsd.daemon.store.area import Area
from opsd.daemon.types.measured import AnswerRecord
from opsd.daemon.types.suites import CachedAnswer

_answers = tables.answer_cache


class AnswerArea(Area):
    """Implements ``AnswerStore``."""

    def save_answer(self, key: CachedAnswer, record: AnswerRecord, *, run_id: str) -> None:
        where = and_(
            _answers.c.conditions == key.conditions,
            _answers.c.adapter == key.adapter,
            _answers.c.item_id == key.item_id,
            _answers.c.sample == key.sample,
        )
        values: dict[str, Any] = {
            "run_id": run_id,
            "solved": record.solved,
            "record_json": json.dumps(asdict(record), sort_keys=True),
            "used_unix_s": self._clock(),
        }

        def work(connection: Connection) -> None:
            if connection.execute(update(_answers).where(where).values(**values)).rowcount:
                return
            connection.execute(insert(_answers).values(**asdict(key), **values))

        self._database.write(work)

    def recall_answers(
        self, adapter: str, conditions: str, *, run_id: str
    ) -> dict[tuple[str, int], AnswerRecord]:
        where = and_(
            _answers.c.conditions == conditions,
            _answers.c.adapter == adapter,
            or_(_answers.c.solved.is_not(None), _answers.c.run_id == run_id),
        )
        query = select(_answers.c.item_id, _answers.c.sample, _answers.c.record_json).where(where)
        rows = self._database.read(lambda connection: connection.execute(query).all())
        if rows:
            touch = update(_answers).where(where).values(used_unix_s=self._clock())
            self._database.write(lambda connection: connection.execute(touch))
        return {(row[0], row[1]): AnswerRecord(**json.loads(row[2])) for row in rows}

    def answer_outcomes(self, conditions: str) -> list[dict[str, bool]]:
        query = (
            select(_answers.c.adapter, _answers.c.sample, _answers.c.item_id, _answers.c.solved)
            .where(_answers.c.conditions == conditions, _answers.c.solved.is_not(None))
            .order_by(_answers.c.used_unix_s.desc())
        )
        rows = self._database.read(lambda connection: connection.execute(query).all())
        found: dict[str, dict[str, tuple[int, bool]]] = {}
        for adapter, sample, item_id, solved in rows:
            known = found.setdefault(adapter, {})
            known[item_id] = min(known.get(item_id, (sample, solved)), (sample, solved))
        return [{item: solved for item, (_, solved) in known.items()} for known in found.values()]

    def trim_answers(self, *, max_rows: int, max_age_s: float) -> int:
        oldest = self._clock() - max_age_s

        def work(connection: Connection) -> int:
            gone = connection.execute(
                delete(_answers).where(_answers.c.used_unix_s < oldest)
            ).rowcount
            left = connection.execute(select(func.count()).select_from(_answers)).scalar_one()
            if left <= max_rows:
                return gone
            # Answers of one evaluation share a time: at least the surplus goes, to the next time.
            last = connection.execute(
                select(_answers.c.used_unix_s)
                .order_by(_answers.c.used_unix_s)
                .offset(left - max_rows - 1)
                .limit(1)
            ).scalar_one()
            return (
                gone
                + connection.execute(
                    delete(_answers).where(_answers.c.used_unix_s <= last)
                ).rowcount
            )

        return self._database.write(work)
