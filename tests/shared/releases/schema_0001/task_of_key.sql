select id from tasks
where session_id = :session and user_id = :user and client_action_id = :key
