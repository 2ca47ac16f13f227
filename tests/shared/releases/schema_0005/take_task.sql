/* claim task */
with done as (
    select count(*)::int as steps from steps
    where session_id = :session and status = 'done' and task_seq = (
        select seq from tasks where session_id = :session and status = 'running')
), task as (
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
    returning id as task_id, seq, action, claims, attempts, cancel_requested_at, queued_seq,
        key_id, reserved
), next_attempt as (
    update sessions set ready_at = lease_until
        + make_interval(secs => least(:back_off * power(2, task.attempts - 3), :longest))
    from task where sessions.id = :session and task.attempts >= 3 and :back_off > 0
)
select * from task
