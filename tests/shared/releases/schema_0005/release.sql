/* release */
with released as (
    update sessions set lease_token = null, lease_until = null, hints = 0,
        ready_at = case when :uncount = 0
                        then clock_timestamp() + (ready_at - lease_until) end,
        hint_at = clock_timestamp()
    where id = :session and epoch = :epoch and lease_token = :token
    returning id
)
update tasks set attempts = greatest(attempts - :uncount, 0)
from released where session_id = released.id and status = 'running'
returning 1
