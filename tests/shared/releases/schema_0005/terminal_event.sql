/* cancel event */
with session as (
    update sessions set next_event = next_event + 1, open_tasks = open_tasks - 1,
        updated_at = clock_timestamp()
    where id = :session and user_id = :user
    returning next_event - 1 as seq
)
insert into events (session_id, seq, task_id, type, data, version)
select :session, seq, :task, 'task_cancelled', '{}', 1 from session
returning seq, type, task_id, at, data
