with known as (
    select id, status, body_hash, queued_seq, position from tasks
    where session_id = :session and user_id = :user and client_action_id = :key
), session as (
    update sessions set
        next_task = next_task + 1,
        next_event = next_event + 1,
        open_tasks = open_tasks + 1,
        hints = case when open_tasks = 0 then 0 else hints end,
        hint_at = case when open_tasks = 0
                       then clock_timestamp() + interval '1 second' else hint_at end,
        updated_at = clock_timestamp()
    where id = :session and user_id = :user
        and not exists (select from known)
        and (:on_busy <> 'reject' or open_tasks = 0)
        and (early_cancels = 0 or not :alone)
    returning next_task - 1 as task_seq, next_event - 1 as event_seq,
        open_tasks - 1 as position, early_cancels
), task as (
    insert into tasks (session_id, seq, user_id, client_action_id, action, body_hash,
        on_busy, queued_seq, position)
    select :session, task_seq, :user, :key, cast(:action as jsonb), :body_hash,
        :on_busy, event_seq, position
    from session
    returning id, queued_seq, position
), event as (
    insert into events (session_id, seq, task_id, type, data)
    select :session, task.queued_seq, task.id, 'task_queued',
        jsonb_build_object('action', cast(:action as jsonb), 'client_action_id',
            cast(:key as text), 'position', task.position)
    from task
    returning at, data
)
select task.id, 'queued' as status, task.queued_seq, task.position, null as body_hash,
    true as fresh, event.at, event.data, session.early_cancels
from task, event, session
union all
select id, status, queued_seq, position, body_hash, false, null, null, 0 from known
