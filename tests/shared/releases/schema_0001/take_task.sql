with done as (
    select count(*)::int as steps from steps
    where session_id = :session and status = 'done' and task_seq = (
        select seq from tasks where session_id = :session and status = 'running')
)
update tasks set
    status = 'running',
    epoch = :epoch,
    claims = claims + 1,
    attempts = case when done.steps > steps_done then 1 else attempts + 1 end,
    steps_done = done.steps,
    started_at = coalesce(started_at, clock_timestamp())
from done
where session_id = :session and seq = (
    select seq from tasks
    where session_id = :session and status in ('queued', 'running')
    order by (status = 'running') desc, (on_busy = 'interrupt') desc, seq
    limit 1)
returning id, seq, action, claims, attempts, cancel_requested_at, queued_seq
