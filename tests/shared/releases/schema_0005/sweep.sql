/* sweep */
with due as materialized (
    select id, hint_at from sessions
    where (select pg_try_advisory_xact_lock(:lock))
        and not quarantined and hint_at < clock_timestamp() and open_tasks > 0
    and (lease_until is null or lease_until < clock_timestamp())
    and (ready_at is null or ready_at < clock_timestamp())
        and (lease_until is null
            or pg_postmaster_start_time() + make_interval(secs => :grace) < clock_timestamp())
    order by hint_at
    limit :limit
    for no key update skip locked
), hinted as (
    update sessions s set
        hints = least(hints + 1, 5),
        hint_at = clock_timestamp() + make_interval(secs => least(power(2, hints), 30))
    from due where s.id = due.id
    returning s.id, due.hint_at as was_due
)
select id from hinted order by was_due
