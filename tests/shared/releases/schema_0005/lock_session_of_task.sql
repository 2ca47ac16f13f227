select s.id from sessions s
where s.id = (select session_id from tasks where id = :task and user_id = :user)
    and s.user_id = :user
for no key update
