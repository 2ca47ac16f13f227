/* claim lease */
update sessions s set
    epoch = epoch + 1,
    writes = 0,
    lease_token = gen_random_uuid(),
    lease_until = clock_timestamp() + make_interval(secs => :lease_seconds),
    ready_at = null,
    hints = 0,
    hint_at = least(hint_at, clock_timestamp() + make_interval(secs => :lease_seconds))
where s.id = :session and not quarantined and open_tasks > 0
    and (lease_until is null or lease_until < clock_timestamp())
    and (ready_at is null or ready_at < clock_timestamp())
returning s.id, s.epoch, s.lease_token, s.open_tasks, s.user_id, s.agent, s.story, s.story_hash,
    s.metadata, s.state, s.view, s.next_message, s.head_message, s.generation,
    (select jsonb_build_object('id', c.id, 'name', c.name, 'soul', c.soul,
                               'soul_version', c.soul_version)
     from characters c where c.id = s.character_id and c.user_id = s.user_id) as character
