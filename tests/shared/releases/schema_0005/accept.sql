/* accept */
with known as (
    select id, status, body_hash, queued_seq, position, priority from tasks
    where session_id = :session and user_id = :user and client_action_id = :key
), mine as materialized (
    select count(*)::int as open, count(*) filter (where priority = 0)::int as before
    from (select priority from tasks
          where user_id = :user and status in ('queued', 'running') limit :counted) t
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
        and (cast(:most as int) is null or (select open from mine) < cast(:most as int))
        and (early_cancels = 0 or not :alone)

    returning next_task - 1 as task_seq, next_event - 1 as event_seq,
        open_tasks - 1 as position, early_cancels, priority
), task as (
    insert into tasks (session_id, seq, user_id, client_action_id, action, body_hash,
        on_busy, queued_seq, position, priority, key_id, reserved)
    select :session, task_seq, :user, :key, cast(:action as jsonb), :body_hash,
        :on_busy, event_seq, position, priority, :key_id, null
    from session
    returning id, queued_seq, position
), event as (
    insert into events (session_id, seq, task_id, type, data, version)
    select :session, task.queued_seq, task.id, 'task_queued',
        jsonb_build_object('action', cast(:action as jsonb), 'client_action_id',
            cast(:key as text), 'position', task.position), 1
    from task
    returning at, data
)
select task.id, 'queued' as status, task.queued_seq, task.position, null as body_hash,
    true as fresh, event.at, event.data, session.early_cancels, session.priority, mine.before
from task, event, session, mine
union all
select id, status, queued_seq, position, body_hash, false, null, null, 0, priority,
    mine.before - 1
from known, mine
union all
select null, 'refused', null, mine.open, null, false, null, null, 0, 0, 0
from mine
where mine.open >= cast(:most as int) and not exists (select from known)
    and exists (select from sessions where id = :session and user_id = :user)
