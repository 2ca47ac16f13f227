with taken as (
    delete from early_cancels where session_id = :session and client_action_id = :key
    returning 1
)
update sessions set early_cancels = early_cancels - 1
where id = :session and exists (select from taken) returning 1
