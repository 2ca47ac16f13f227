/* claim */
with recursive free as materialized (
    select (
        select bool_or(status = 'running' or on_busy = 'collect') from tasks
        where session_id = :session and status in ('queued', 'running')) as more
    from sessions where id = :session and not quarantined and open_tasks > 0
    and (lease_until is null or lease_until < clock_timestamp())
    and (ready_at is null or ready_at < clock_timestamp())
), lease as (
    update sessions s set
    epoch = epoch + 1,
    writes = 0,
    lease_token = gen_random_uuid(),
    lease_until = clock_timestamp() + make_interval(secs => :lease_seconds),
    ready_at = null,
    hints = 0,
    hint_at = least(hint_at, clock_timestamp() + make_interval(secs => :lease_seconds))
    from free where s.id = :session and not free.more
    returning s.id, s.epoch, s.lease_token, s.open_tasks, s.user_id, s.agent, s.story, s.story_hash,
    s.metadata, s.state, s.view, s.next_message, s.head_message, s.generation,
    (select jsonb_build_object('id', c.id, 'name', c.name, 'soul', c.soul,
                               'soul_version', c.soul_version)
     from characters c where c.id = s.character_id and c.user_id = s.user_id) as character
), task as (
    update tasks t set
        status = 'running',
        epoch = lease.epoch,
        claims = claims + 1,
        attempts = attempts + 1,
        started_at = coalesce(started_at, clock_timestamp())
    from lease
    where session_id = :session and seq = (
        select seq from tasks
        where session_id = :session and status in ('queued', 'running')
        order by (status = 'running') desc, (on_busy = 'interrupt') desc, seq
        limit 1)
    returning t.id as task_id, seq, action, claims, attempts, cancel_requested_at
), path as (
    select m.no, m.parent, m.message, 1 as depth, known.head
    from lease
        cross join lateral (select case when lease.generation = :generation
                                        then cast(:known as bigint) end as head) as known
        join messages m on m.session_id = :session and m.no = lease.head_message
    where m.no is distinct from known.head
    union all
    select m.no, m.parent, m.message, p.depth + 1, p.head
    from path p join messages m on m.session_id = :session and m.no = p.parent
    where p.depth < :limit and m.no is distinct from p.head
)
select free.more, lease.*, task.*,
    (select json_agg(message order by no) from path) as messages,
    (select parent from path order by no limit 1) as root
from free left join lease on true left join task on true
