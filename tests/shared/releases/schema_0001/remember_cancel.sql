with added as (
    insert into early_cancels (session_id, client_action_id) values (:session, :key)
    on conflict do nothing returning 1
)
update sessions set early_cancels = early_cancels + 1
where id = :session and exists (select from added)
