"""What became of a fenced write whose answer was lost, so that it is made once and no more.

A lease counts its writes, and each says which one it is: it can be sent again as often as need be,
for a copy that comes after the first updates no row. Then only its numbers are missing, which stand
in the log under the lease's epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text

from shared.records import Claim, NewEvent, Written
from shared.store.database import Database

# Events that the gateway appends meanwhile carry another epoch.
_WRITTEN = text(
    """/* outcome of write */
    select coalesce(e.first_seq, s.next_event), coalesce(e.at, clock_timestamp()), s.open_tasks
    from sessions s, lateral (
        select min(seq) as first_seq, min(at) as at from events
        where session_id = s.id and epoch = s.epoch and seq > :seq
    ) as e
    where s.id = :session and s.epoch = :epoch and s.lease_token = :token
        and s.writes = :writes + 1
    """
)

# The end gave the lease back: the session may have been claimed again since.
_ENDED = text(
    """/* outcome of end */
    select e.first_seq, e.at, s.open_tasks
    from sessions s
    join tasks t on t.session_id = s.id and t.seq = :task_seq, lateral (
        select min(seq) as first_seq, min(at) as at from events
        where session_id = s.id and epoch = :epoch and seq > :seq
    ) as e
    where s.id = :session and t.epoch = :epoch and t.status not in ('queued', 'running')
    """
)


@dataclass(slots=True)
class Progress:
    """How far a lease has written: the number of its writes, and its last event's `seq`."""

    writes: int = 0
    seq: int = 0

    def count(self, events: Sequence[NewEvent], written: Written) -> None:
        """Take note of a write that was made."""
        self.writes += 1
        if events:
            self.seq = written.first_seq + len(events) - 1


async def of_write(db: Database, claim: Claim, progress: Progress) -> Written | None:
    """What the write after `progress` gave, or None where it was not made by this lease."""
    fence = claim.fence
    row = await db.row(
        _WRITTEN,
        {
            "session": fence.session_id,
            "epoch": fence.epoch,
            "token": fence.token,
            "writes": progress.writes,
            "seq": progress.seq,
        },
    )
    return None if row is None else Written(*row)


async def of_end(db: Database, claim: Claim, progress: Progress) -> Written | None:
    """What the end after `progress` gave, or None where this lease has not ended the task."""
    row = await db.row(
        _ENDED,
        {
            "session": claim.fence.session_id,
            "epoch": claim.fence.epoch,
            "task_seq": claim.task_seq,
            "seq": progress.seq,
        },
    )
    return None if row is None else Written(*row)
