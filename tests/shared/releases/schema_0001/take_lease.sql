update sessions s set
    epoch = epoch + 1,
    lease_token = gen_random_uuid(),
    lease_until = clock_timestamp() + make_interval(secs => :lease_seconds),
    hints = 0,
    hint_at = least(hint_at, clock_timestamp() + make_interval(secs => :lease_seconds))
where s.id = :session and s.open_tasks > 0
    and (s.lease_until is null or s.lease_until < clock_timestamp())
returning s.epoch, s.lease_token, s.user_id, s.agent, s.story, s.story_hash, s.metadata,
    s.state, s.view, s.next_message, s.head_message,
    (select jsonb_build_object('id', c.id, 'name', c.name, 'soul', c.soul,
                               'soul_version', c.soul_version)
     from characters c where c.id = s.character_id and c.user_id = s.user_id) as character
