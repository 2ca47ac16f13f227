/* pulse */
select s.id, s.open_tasks > 1 as queued, (select t.cancel_requested_at is not null from tasks t
                            where t.session_id = s.id and t.status = 'running') as cancel
from sessions s
join unnest(cast(:ids as uuid[]), cast(:epochs as bigint[]), cast(:tokens as uuid[]))
    as h(id, epoch, token)
    on s.id = h.id and s.epoch = h.epoch and s.lease_token = h.token
