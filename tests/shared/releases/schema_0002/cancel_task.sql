/* cancel */
update tasks set
    cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp()),
    status = case when status = 'queued' and not joined then 'cancelled' else status end,
    finished_at = case when status = 'queued' and not joined then clock_timestamp()
                       else finished_at end
from (select exists (
    select from tasks j join tasks r on r.session_id = j.session_id and r.id = j.joined_task
    where j.id = :task and r.status = 'running') as joined) as run
where id = :task and user_id = :user and status in ('queued', 'running')
returning id, session_id, status
