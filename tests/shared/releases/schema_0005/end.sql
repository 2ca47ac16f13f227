/* end */
with fence as (
    update sessions set
        next_event = next_event + :event_count,
        writes = writes + 1,
        next_message = next_message + :message_count,
        head_message = case when :message_count > 0
                            then next_message + :message_count - 1 else head_message end,
        state = coalesce(cast(:state as jsonb), state),
        view = coalesce(cast(:view as jsonb), view),
        open_tasks = open_tasks - 1 - cardinality(cast(:joined as uuid[])),
        lease_token = null,
        lease_until = null,
        ready_at = null,
        quarantined = false,
        hints = 0,
        hint_at = clock_timestamp(),
        updated_at = clock_timestamp()
    where id = :session and epoch = :epoch and lease_token = :token
        and writes = coalesce(cast(:writes as integer), writes)
    returning next_event - :event_count as first_seq,
        next_message - :message_count as first_message,
        clock_timestamp() as at, open_tasks, user_id, character_id
), task as (
    update tasks set
        status = :status,
        result = cast(:result as jsonb),
        error = cast(:error as jsonb),
        usage = cast(:task_usage as jsonb),
        finished_at = fence.at
    from fence where session_id = :session and seq = :task_seq
), joined as (
    update tasks set
        status = :status,
        result = cast(:result as jsonb)
            || jsonb_build_object('joined', cast(:task as uuid)),
        error = cast(:error as jsonb),
        finished_at = fence.at
    from fence where session_id = :session and id = any(cast(:joined as uuid[]))
), new_events as (
    insert into events (session_id, seq, task_id, epoch, type, data, at, version)
    select :session, fence.first_seq + e.ord - 1, coalesce(e.task_id, :task), :epoch,
        e.type, e.data, fence.at, 1
    from fence, rows from (
        jsonb_to_recordset(cast(:events as jsonb)) as (type text, data jsonb, task_id uuid)
    ) with ordinality as e(type, data, task_id, ord)
), new_messages as (
    insert into messages (session_id, no, parent, task_id, message, created_at)
    select :session, fence.first_message + m.ord - 1,
        case when m.ord = 1 then cast(:head as bigint)
             else fence.first_message + m.ord - 2 end,
        :task, m.message, fence.at
    from fence, jsonb_array_elements(cast(:messages as jsonb))
        with ordinality as m(message, ord)
), off_branch as (
    update memories m set on_branch = false
    from fence
    where m.session_id = :session and m.on_branch
        and m.no > coalesce(cast(:head as bigint), 0) and m.no < fence.first_message
), new_memories as (
    insert into memories (user_id, character_id, session_id, kind, no, part, sources, role,
        speaker, text, language, words, said_at, valid_from)
    select fence.user_id, fence.character_id, :session, 'turn', fence.first_message + m.ord - 1,
        m.part, array[fence.first_message + m.ord - 1], m.role, m.speaker, m.text, m.language,
        to_tsvector(cast(m.language as regconfig),
            case when m.speaker = '' then m.text else m.speaker || ': ' || m.text end)
        || array_to_tsvector(m.pairs), fence.at, fence.at
    from fence, jsonb_to_recordset(cast(:memories as jsonb)) as m(ord integer, part smallint,
        role text, speaker text, text text, language text, pairs text[])
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
