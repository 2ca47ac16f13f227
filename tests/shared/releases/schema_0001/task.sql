select t.id, t.session_id, t.status, t.claims, t.result, t.error, t.usage, t.created_at,
    t.started_at, t.finished_at, coalesce(s.lease_until > clock_timestamp(), false)
from tasks t join sessions s on s.id = t.session_id
where t.id = :task and t.user_id = :user
