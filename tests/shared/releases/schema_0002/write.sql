/* write */
with fence as (
    update sessions set
        next_event = next_event + :event_count,
        writes = writes + 1,
        lease_until = clock_timestamp() + make_interval(secs => :lease_seconds),
        ready_at = case when :finished then null else ready_at end
    where id = :session and epoch = :epoch and lease_token = :token
        and writes = coalesce(cast(:writes as integer), writes)
    returning next_event - :event_count as first_seq, clock_timestamp() as at, open_tasks
), new_events as (
    insert into events (session_id, seq, task_id, epoch, type, data, at, version)
    select :session, fence.first_seq + e.ord - 1, coalesce(e.task_id, :task), :epoch,
        e.type, e.data, fence.at, 1
    from fence, rows from (
        jsonb_to_recordset(cast(:events as jsonb)) as (type text, data jsonb, task_id uuid)
    ) with ordinality as e(type, data, task_id, ord)
), new_steps as (
    insert into steps (session_id, task_seq, no, kind, name, effect, input_hash, status,
        epoch, output, version)
    select :session, :task_seq, x.no, x.kind, x.name, x.effect, x.input_hash, x.status,
        :epoch, x.output, 1
    from fence, jsonb_to_recordset(cast(:steps as jsonb)) as x(no int, kind text,
        name text, effect text, input_hash text, status text, output jsonb)
    on conflict (session_id, task_seq, no) do update
        set status = excluded.status, epoch = excluded.epoch, output = excluded.output,
            version = excluded.version
)
select first_seq, at, open_tasks from fence
