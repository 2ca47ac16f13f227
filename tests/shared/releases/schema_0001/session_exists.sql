select 1 from sessions where id = :session and user_id = :user
