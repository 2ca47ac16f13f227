update tasks set
    cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp()),
    status = case status when 'queued' then 'cancelled' else status end,
    finished_at = case status when 'queued' then clock_timestamp() else finished_at end
where id = :task and user_id = :user and status in ('queued', 'running')
returning id, session_id, status
