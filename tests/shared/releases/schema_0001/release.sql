with released as (
    update sessions set lease_token = null, lease_until = null, hints = 0,
        hint_at = clock_timestamp()
    where id = :session and epoch = :epoch and lease_token = :token
    returning id
)
update tasks set attempts = greatest(attempts - 1, 0)
from released where session_id = released.id and status = 'running'
returning 1
