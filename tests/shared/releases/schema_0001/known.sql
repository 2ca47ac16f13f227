select id, status, queued_seq, position, body_hash, false as fresh from tasks
where session_id = :session and user_id = :user and client_action_id = :key
