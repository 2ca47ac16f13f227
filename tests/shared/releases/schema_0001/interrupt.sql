update tasks set cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp())
where session_id = :session and user_id = :user and status = 'running'
returning id
