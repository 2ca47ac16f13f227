/* heartbeat */
with mine as (
    select s.id from sessions s
    join unnest(cast(:ids as uuid[]), cast(:epochs as bigint[]), cast(:tokens as uuid[]))
        as h(id, epoch, token)
        on s.id = h.id and s.epoch = h.epoch and s.lease_token = h.token
    for no key update of s skip locked
)
update sessions s
set lease_until = clock_timestamp() + make_interval(secs => :lease_seconds)
from mine where s.id = mine.id
